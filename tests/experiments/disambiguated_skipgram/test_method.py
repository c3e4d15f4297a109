"""The rest of the note's "Testable small": the model, the two stages, and what they find."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

import clipjax
from clipjax.cli import main
from clipjax.config import import_file, load_config
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.mesh import make_mesh
from clipjax.prepare import prepare
from experiments.disambiguated_skipgram.evals import Senses
from experiments.disambiguated_skipgram.losses import entropy_bonus, sampled_softmax
from experiments.disambiguated_skipgram.model import SkipGram
from experiments.disambiguated_skipgram.sampler import draw_candidates
from experiments.disambiguated_skipgram.stages import spread_q
from experiments.disambiguated_skipgram.windows import Planted
from tests.experiments.disambiguated_skipgram import oracle, toy

V, K, D = 16, 3, 8
ENTROPY_OFF = {"losses.entropy.weight": 0.0}


def model_case(**settings):
    """(model, random parameters, batch)."""
    model = SkipGram(V, **({"senses": K, "embed_dim": D} | settings))
    batch = next(toy.batches(Planted(grouped=True), 4, 1))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), batch)["params"])
    keys = jax.random.split(jax.random.key(1), len(params))
    params = {
        n: jax.random.normal(k, x.shape) for k, (n, x) in zip(keys, params.items(), strict=True)
    }
    return model, params, batch


def test_one_sense_is_plain_skipgram_step_by_step():
    config = toy.config("train", 3, **{"model.senses": 1}, **ENTROPY_OFF)
    initial, (params, _) = toy.initial(config), toy.run(config)
    tables = {k: initial[k].astype(np.float64) for k in ("sense", "output", "output_bias")}
    trace = dict.fromkeys(tables, 0.0)
    batches = toy.batches(Planted(grouped=True), config.batch_size, 3)
    for batch, m, share in zip(batches, (0.5, 0.6, 0.7), (1.0, 0.5, 0.1), strict=True):
        key = jax.random.fold_in(jax.random.key(batch["sample_seed"][0]), 1)
        _, (_, d_rows, d_table, d_bias) = oracle.sampled_softmax(
            np.zeros((*batch["targets"].shape, 1)),
            tables["sense"][batch["centre"]][:, None],
            tables["output"],
            tables["output_bias"],
            batch["targets"],
            np.asarray(draw_candidates(key, V, config.losses.skipgram.candidates)),
            1.0,
        )
        d_sense = np.zeros_like(tables["sense"])
        np.add.at(d_sense, batch["centre"], d_rows[:, 0])
        for name, d in (("sense", d_sense), ("output", d_table), ("output_bias", d_bias)):
            trace[name] = d + m * trace[name]
            tables[name] = tables[name] - config.optim.lr * share * trace[name]
    for name, want in tables.items():
        assert oracle.distance(params[name], want) < 1e-6, name
    assert not np.any(params["disambiguation"])


def test_no_gradient_reaches_the_outputs_through_the_context():
    model, params, batch = model_case()

    def loss(params, scores=None):
        outputs = model.apply({"params": params}, batch, train=True)
        outputs |= {} if scores is None else {"sense_scores": scores}
        return sampled_softmax(outputs, batch, jnp.float32(0), candidates=4)[0]

    scores = model.apply({"params": params}, batch, train=True)["sense_scores"]
    whole, without = jax.grad(loss)(params), jax.grad(loss)(params, scores)
    np.testing.assert_allclose(whole["output"], without["output"], atol=1e-7)
    # There would be such a gradient: the scores count, and they depend on u.
    assert np.abs(jax.grad(loss, 1)(params, scores)).max() > 1e-3
    assert np.abs(whole["disambiguation"]).max() > 1e-4


def test_only_the_centre_words_learn_to_disambiguate():
    model, params, batch = model_case()

    def loss(params):
        outputs = model.apply({"params": params}, batch, train=True)
        return sampled_softmax(outputs, batch, jnp.float32(0), candidates=4)[0]

    gradients = jax.grad(loss)(params)
    for name in ("disambiguation", "disambiguation_bias", "sense"):
        moved = np.abs(np.asarray(gradients[name]).reshape(V, -1)).max(1) > 0
        assert set(np.flatnonzero(moved)) == set(batch["centre"].tolist()), name


def test_draws_are_of_the_sample_and_only_in_training():
    model, params, batch = model_case()
    apply = lambda batch, train: model.apply({"params": params}, batch, train=train)["sense_scores"]  # noqa: E731
    one, z = apply(batch, True), apply(batch, False)
    assert (np.ptp(z, axis=1) == 0).all()
    assert (np.ptp(one, axis=1) > 0).all()
    rows = np.array([2, 0])
    np.testing.assert_allclose(apply({k: x[rows] for k, x in batch.items()}, True), one[rows], 1e-5)


def test_several_positions_a_sample_are_as_many_samples():
    """Without a draw: with one, positions of a sample share its seed and have draws of their own."""
    model, params, batch = model_case(relaxed=False)
    folded = {k: x.reshape(2, 2, *x.shape[1:]) for k, x in batch.items() if k != "sample_seed"}
    folded["sample_seed"] = batch["sample_seed"][:2]  # the first decides about the candidates

    def loss(params, batch):
        outputs = model.apply({"params": params}, batch, train=True)
        value, _ = sampled_softmax(outputs, batch, jnp.float32(0), candidates=4)
        return value + entropy_bonus(outputs, batch)[0]

    (one, a), (several, b) = (jax.jit(jax.value_and_grad(loss))(params, x) for x in (batch, folded))
    assert oracle.distance(several, one) < 1e-6
    for name in a:
        assert oracle.distance(b[name], a[name]) < 1e-6, name
    relaxed = SkipGram(V, K, D).apply({"params": params}, folded, train=True)["sense_scores"]
    assert len(np.unique(relaxed - relaxed.mean(-1, keepdims=True))) == relaxed.size


@pytest.mark.parametrize(("gamma", "sign"), [(-0.1, 1), (0.1, -1)])
def test_the_sign_of_gamma(gamma, sign):
    model, params, batch = model_case(shared=True, relaxed=False)

    def entropy(params):
        outputs = model.apply({"params": params}, batch, train=True)
        return entropy_bonus(outputs, batch)[0]

    before, gradient = jax.value_and_grad(entropy)(params)
    after = entropy(jax.tree.map(lambda p, g: p - 0.1 * gamma * g, params, gradient))
    assert np.sign(after - before) == sign


def test_gamma_of_the_configs_rewards_entropy_and_the_wrong_sign_punishes_it():
    small = import_file(toy.CONFIGS / "small.py")
    weights = [
        small.get_config(a).losses.entropy.weight for a in ("pretrain", "pretrain_wrong_sign")
    ]
    assert weights == [-0.1, 0.1]
    found = []
    for weight in (weights[0], 0.0, weights[1]):
        config = toy.config("pretrain", 60, **{"losses.entropy.weight": weight, "optim.lr": 2.0})
        found.append(toy.run(config)[1]["entropy/loss"])
    assert found[0] > found[1] > found[2]


def test_both_stages_see_the_records_that_one_alone_sees():
    small = import_file(toy.CONFIGS / "small.py")
    arms = {arm: small.get_config(arm) for arm in small.ARMS}
    length = {arm: config.total_samples for arm, config in arms.items()}
    assert length["no_pretrain"] == length["skipgram"] == length["pretrain"] + length["full"]
    for arm, config in arms.items():
        first = "start" not in config.data.order
        assert first == (arm not in ("full", "wrong_sign"))
        assert first or config.data.order.start == length["pretrain"]
        assert config.optim.settings.steps * config.batch_size == length[arm]
        assert length[arm] % (3 * config.batch_size) == 0  # the second stage's three epochs


def test_after_spread_q_every_word_has_the_shared_disambiguation():
    shared, params, batch = model_case(shared=True, relaxed=False)
    config = ConfigDict({"model": {"vocabulary": V, "senses": K, "shared": True, "relaxed": False}})
    spread, config = spread_q(dict(params), config)
    assert not config.model.shared
    assert config.model.relaxed
    model = SkipGram(V, K, D)
    for word in range(V):
        at = batch | {"centre": np.full(4, word, np.int32)}
        z = [
            m.apply({"params": p}, at)["sense_logits"]
            for m, p in ((shared, params), (model, spread))
        ]
        np.testing.assert_allclose(*z, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="first stage"):
        spread_q(spread, config)


@pytest.fixture(scope="module")
def both_stages():
    """(parameters, config) of the second stage after the first one, on the two topics."""
    settings = {"optim.lr": 2.0}
    params, _ = toy.run(toy.config("pretrain", 300, **settings))
    params, _ = spread_q(params, toy.config("pretrain", 300))
    config = toy.config("train", 600, **settings, **ENTROPY_OFF)
    return toy.run(config, params)[0], config


def test_a_pseudo_word_is_disambiguated(both_stages):
    params, config = both_stages
    for whole in (True, False):
        found = Senses("senses", toy.encoder(config), Planted(), whole=whole).run(params)
        assert found["accuracy"] > 0.95
        assert found["ari"] > 0.9
        assert found["pseudo_word_senses"] == 2


def test_nearest_neighbours_of_its_senses_are_of_either_topic(both_stages):
    params, config = both_stages
    senses = params["sense"].reshape(16, 2, 16)
    priors = Senses("senses", toy.encoder(config), Planted()).priors(params)
    topic = np.array([-1, -1, *[0] * 7, *[1] * 7])
    words, kinds = np.nonzero((priors >= 0.05) & (topic >= 0)[:, None])
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    nearest = np.argsort(-unit(senses[1]) @ unit(senses[words, kinds]).T)[:, :5]
    found = topic[words[nearest]]
    assert (np.ptp(found, axis=1) == 0).all()
    assert found[0, 0] != found[1, 0]


@pytest.mark.parametrize("arg", ["pretrain", "train"])
def test_the_papers_recipe_traces(arg):
    config = load_config(f"{toy.CONFIGS / 'paper.py'}:{arg}", base_config())
    made = prepare(config, make_mesh({"fsdp": 4, "tensor": 2}, jax.devices()))
    params, losses = made.state.params, made.config.losses
    assert made.config.batch_size == 128
    assert made.batch["context"].shape == (128, 10)
    assert losses.skipgram.candidates == 64
    epoch = 34_000_000 * 128
    if arg == "pretrain":
        assert losses.entropy.weight == -0.1
        assert tuple(made.config.optim.settings["values"]) == (0.5,)
        assert made.config.total_samples == epoch
    else:
        assert losses.skipgram.temperature == ((0, 1.0), (epoch, 0.5))
        assert "entropy" not in losses
        assert made.config.total_samples == 3 * epoch
    assert params["sense"].shape == (500_000, 300)
    assert params["disambiguation"].shape == ((5, 300) if arg == "pretrain" else (500_000, 300))
    steps = 34_000_000
    at = {0: 0.1, steps // 2: 0.05, steps: 0.0} if arg == "pretrain" else {}
    at = at or {0: 0.1, steps: 0.05, 2 * steps: 0.01, 3 * steps - 1: 0.01}
    for step, rate in at.items():
        assert np.isclose(made.rate(jnp.int32(step)), rate, atol=1e-7), step


def test_momentum_changes_with_the_epochs():
    from experiments.disambiguated_skipgram.optim import momentum

    optimizer = momentum({}, {}, steps=6)
    state, seen = optimizer.init({"x": jnp.zeros(())}), []
    for _ in range(8):
        before = float(state[1]["x"])
        update, state = optimizer.update({"x": jnp.ones(())}, state)
        seen.append((float(update["x"]) - 1) / before if before else 0.0)
    np.testing.assert_allclose(seen, [0, 0.5, 0.6, 0.6, 0.7, 0.7, 0.7, 0.7], rtol=1e-5)


def test_the_two_stages_by_command(tmp_path, monkeypatch):
    """`clipjax train`, `stage`, `train` from it, and `eval`: the second run begins with what the first one learnt."""
    monkeypatch.chdir(toy.ROOT)
    config = str(toy.CONFIGS / "tiny.py")
    first, spread, second = (str(tmp_path / name) for name in ("first", "spread", "second"))
    quiet = ["--config.evals={}", "--config.checkpoint.every=None"]
    more = "--config.total_samples=48"
    assert main(["train", f"--config={config}:pretrain", f"--workdir={first}", *quiet, more]) == 0
    kind = "experiments.disambiguated_skipgram.stages:spread_q"
    assert main(["stage", f"--stage={kind}", f"--source={first}", f"--target={spread}"]) == 0
    init = ["--config.init={'': '" + spread + "'}", "--config.optim.lr=1e-30"]
    assert main(["train", f"--config={config}", f"--workdir={second}", *init]) == 0
    old, new = (clipjax.load(path).params for path in (first, second))
    np.testing.assert_array_equal(new["sense"], old["sense"])
    np.testing.assert_array_equal(new["disambiguation"], np.tile(old["disambiguation"], (16, 1)))
    assert np.abs(old["disambiguation"]).max() > 0
    results = json.loads((tmp_path / "second" / "results.json").read_text())
    output = tmp_path / "again.jsonl"
    assert main(["eval", f"--checkpoint={second}", f"--output={output}"]) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    again = {line["suite"]: line["metrics"] for line in lines}
    assert again == {name: entry["metrics"] for name, entry in results.items()}
