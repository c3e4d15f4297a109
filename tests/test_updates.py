"""What has no gradient changes all the same: updates of losses and models, and targets that follow their sources."""

import ast
import functools
import itertools

import jax
import numpy as np
import pytest

from clipjax import rules
from clipjax.config import apply_override
from clipjax.errors import UserError
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models import shapes
from clipjax.prepare import prepare
from clipjax.step import init_state
from tests import tiny_core
from tests.tiny_run import tiny_config

FREEZE = "optim.freeze=(('queue|centre|slow_scale|number', True), ('.*', False))"
FOLLOW = "optim.follow=(('slow_(.*)', r'logit_\\1', 0.75),)"
LOSSES = {
    "contrastive": {"kind": "softmax"},
    "queue": {"kind": "tests.tiny_core:queue_loss"},
    "centred": {"kind": "tests.tiny_core:centred_loss", "weight": 3.0},
}


PROJECTED = {"kind": "tests.tiny_core:projected_loss"}


def config(kind, losses, *overrides):
    found = tiny_config("evals={}", "optim.ema=0.0", "batch_size=16")
    found.unlock()
    found.losses = losses
    found.model.kind = f"tests.tiny_core:{kind}"
    found.model.image.patch_dropout = 0.0
    found.lock()
    for override in overrides:
        apply_override(found, override)
    return found


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    text = rng.integers(4, 48, (16, 8), np.int32)
    text[:, -1] = 3
    image = rng.integers(0, 256, (16, 16, 16, 3), np.uint8)
    return {"image": image, "text": text, "sample_seed": np.arange(16, dtype=np.uint32)}


def run(settings, steps=2, **sizes):
    """States and metrics of some steps, as NumPy: [(flat parameters, metrics), ...]; the first without metrics."""
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    made = prepare(settings, mesh)
    state = init_state(made.model, made.config, made.optimizer, mesh)
    flat = lambda: jax.device_get(rules.paths(state.params))  # noqa: E731
    found = [(flat(), {})]
    layout = jax.tree.map(lambda x: x.sharding, state)
    with jax.set_mesh(mesh):
        placed = {k: jax.device_put(x, batch_sharding(mesh)) for k, x in batch().items()}
        for _ in range(steps):
            state, metrics = made.step(state, placed)
            found.append((flat(), jax.device_get(metrics)))
    for path in ("queue", "centre"):
        if path in state.params:
            assert state.params[path].sharding.is_equivalent_to(
                layout.params[path], state.params[path].ndim
            )
    return found


@functools.cache
def plain():
    return run(config("Remembering", LOSSES, FREEZE, FOLLOW), data=1)


def test_updates_come_after_the_optimizer_and_follow_after_them():
    states = plain()
    for (before, _), (after, _) in itertools.pairwise(states):
        slow = 0.75 * before["slow_scale"] + 0.25 * after["logit_scale"]
        assert after["slow_scale"] == pytest.approx(slow, rel=1e-6)
        assert after["logit_scale"] != before["logit_scale"]
        assert after["number"] == 3
        assert np.any(after["centre"] != before["centre"])
        norms = np.linalg.norm(after["queue"], axis=1)
        np.testing.assert_allclose(norms, 1.0, rtol=1e-5)  # the batch's texts
    assert [m["queue/samples"] for _, m in states[1:]] == [0.0, 16.0]
    assert states[1][1]["queue/loss"] == 0.0  # the loss sees the queue of before
    assert states[2][1]["queue/loss"] != 0.0


def test_no_state_of_the_optimizer_for_what_is_updated():
    settings = config("Remembering", LOSSES, FREEZE, FOLLOW)
    made = prepare(settings, make_mesh({"data": 1}, jax.devices()[:1]))
    moments = jax.tree_util.tree_leaves_with_path(made.state.optimizer)
    assert not [p for p, _ in moments if "queue" in jax.tree_util.keystr(p)]


@pytest.mark.parametrize(
    ("chunks", "sizes"), [(2, {"data": 2, "fsdp": 2, "tensor": 2}), (1, {"data": 8})]
)
def test_they_do_not_depend_on_mesh_or_chunks(chunks, sizes):
    settings = config("Remembering", LOSSES, FREEZE, FOLLOW, f"grad_cache={chunks}")
    found = run(settings, **sizes)
    for (want, want_metrics), (got, metrics) in zip(plain(), found, strict=True):
        for path in ("queue", "centre", "slow_scale"):
            np.testing.assert_allclose(got[path], want[path], rtol=2e-5, atol=2e-6, err_msg=path)
        for name in want_metrics:
            assert metrics[name] == pytest.approx(want_metrics[name], rel=1e-3, abs=1e-6), name


def test_whole_batch_has_gradients_and_is_exact_under_the_gradient_cache():
    losses = {"projected": PROJECTED}
    one = run(config("Normed", losses, "optim.name=sgd"), data=1)
    two = run(config("Normed", losses, "optim.name=sgd", "grad_cache=2"), data=2)
    for (want, want_metrics), (got, metrics) in zip(one, two, strict=True):
        assert metrics.keys() == want_metrics.keys()
        for name in want_metrics:
            assert metrics[name] == pytest.approx(want_metrics[name], rel=1e-4, abs=1e-6), name
        np.testing.assert_allclose(
            got["projector/kernel"], want["projector/kernel"], rtol=1e-4, atol=1e-6
        )
    moved = one[1][0]["projector/kernel"] - one[0][0]["projector/kernel"]
    assert np.abs(moved).max() > 0
    assert one[1][1]["projected/size"] == pytest.approx(1.0, abs=0.3)  # normalised over all rows


def test_the_model_is_traced_twice_from_start_to_step():
    """Once for its parameters' shapes and once in the step, whoever else asks."""
    tiny_core.CALLS.clear()
    settings = config("Remembering", LOSSES, FREEZE)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    shapes._traced.cache_clear()
    made = prepare(settings, mesh)
    assert tiny_core.CALLS == [False, True]
    state = init_state(made.model, made.config, made.optimizer, mesh)
    assert tiny_core.CALLS == [False, True, False]  # a fresh run makes its parameters
    with jax.set_mesh(mesh):
        placed = {k: jax.device_put(x, batch_sharding(mesh)) for k, x in batch().items()}
        for _ in range(2):
            state, _ = made.step(state, placed)
    assert tiny_core.CALLS == [False, True, False]


def refused(settings):
    with pytest.raises(UserError) as error:
        prepare(settings, make_mesh({"data": 1}, jax.devices()[:1]))
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("5", "follow must be"),
        ("('slow_scale', 'logit_scale')", "(target, source, decay) triples"),
        (
            "('slow_scal', 'logit_scale', 0.9)",
            "matches no parameter, 'slow_scal' (did you mean 'slow_scale'?)",
        ),
        (
            "('slow_scale', 'logit_scal', 0.9)",
            "follow 'logit_scal', which is no parameter (did you mean 'logit",
        ),
        ("('slow_scale', 'slow_scale', 0.9)", "follow itself"),
        ("('slow_scale', 'centre', 0.9)", "float32[] and float32[16]"),
        ("('number', 'logit_scale', 0.9)", "int32[]; only floats can"),
        (
            "('text_head/(.*)', r'image_head/\\1', 0.9)",
            "but it trains; freeze it: put ('text_head/out/kernel', True)",
        ),
        ("('slow_scale', 'logit_scale', 1.5)", "must be from 0 to 1, not 1.5"),
        ("('slow_scale', 'logit_scale', 'x')", "must be a number, or pairs"),
        ("('slow_scale', r'\\2', 0.5)", "not a valid regular expression with its replacement"),
    ],
)
def test_follow_refusals(rule, words):
    loss = {"contrastive": {"kind": "softmax"}}
    settings = config("Remembering", loss, FREEZE)
    with settings.unlocked():
        settings.optim.follow = (ast.literal_eval(rule),)
    assert words in refused(settings)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("one", "must return (scalar, metrics) or (scalar, metrics, updates), not a "),
        ("four", "not a tuple of 4"),
        ("vector", "must return a floating-point scalar as its value, not float32[16, 16]"),
        ("integer", "must return a floating-point scalar as its value, not int32[]"),
        ("metrics", "must return its metrics as a dict"),
        ("metric", "returns a metric 'odd' that is no scalar, but float32[16, 16]"),
        ("taken", "returns a metric 'loss'"),
        (
            "output",
            "does not give (did you mean 'image_embedding'?)",
        ),
        ("field", "reads the batch field 'labels', which no feature makes; there are "),
        ("write", "fails at line"),
        ("fails", "of tiny_core.py: TypeError: "),
        ("trained", "update of 'logit_scale', which trains; freeze it: put ('logit_scale', True)"),
        ("unknown", "update of 'queu', which is no parameter (did you mean 'queue'?)"),
        ("shape", "update of 'queue' that is float32[], but the parameter is float32[16, 16]"),
        ("dtype", "update of 'slow_scale' that is bfloat16[], but the parameter is float32[]"),
        ("twice", "'centre' has an update from the model and one from a loss"),
        (
            "follows",
            "'slow_scale' follows 'logit_scale' by config.optim.follow and has an update too",
        ),
        ("how", "KeyError"),
    ],
)
def test_loss_refusals(how, words):
    losses = {"mine": {"kind": "tests.tiny_core:bad_loss", "how": how}}
    text = refused(config("Remembering", losses, FREEZE, FOLLOW))
    assert words in text
    if how not in ("trained", "unknown", "shape", "dtype", "twice", "follows"):
        assert text.startswith("The loss 'mine' (tests.tiny_core:bad_loss) ")


@pytest.mark.parametrize(
    ("kind", "chunks", "words"),
    [
        (
            "Late",
            1,
            "The model tests.tiny_core:Late makes a parameter in training that it did not make at the start",
        ),
        ("Broken", 1, "The model tests.tiny_core:Broken fails at line"),
        ("Tuple", 1, "must return a dict of outputs, not a tuple"),
        (
            "Needy",
            1,
            "needs the batch field 'labels', which no feature makes (there are: image, text, sample_seed)",
        ),
        ("Asks", 1, "The model tests.tiny_core:Asks fails at line"),
        (
            "RowUpdates",
            2,
            "updates 'slow_scale' from some rows of the batch, which config.grad_cache = 2 cannot",
        ),
    ],
)
def test_model_refusals(kind, chunks, words):
    freeze = [FREEZE] if kind == "RowUpdates" else []
    loss = {"contrastive": {"kind": "softmax"}}
    assert words in refused(config(kind, loss, f"grad_cache={chunks}", *freeze))


def test_an_integer_cannot_train():
    text = refused(config("Remembering", {"contrastive": {"kind": "softmax"}}))
    assert "The parameter 'number' is int32[], which cannot train; freeze it" in text


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"kind": "tests.tiny_core:odd_arguments"},
            "must be a function of `outputs` and `batch`, but takes (out, batch)",
        ),
        ({"kind": "softmax", "mesh": 3}, "cannot have a setting 'mesh'"),
        ({"kind": "softmax", "weight": ((5, 1.0), (3, 2.0))}, "in rising order"),
    ],
)
def test_entries(entry, words):
    assert words in refused(config("Remembering", {"mine": entry}, FREEZE))


def test_a_field_that_nobody_reads_is_told():
    losses = {"texts": {"kind": "tests.tiny_core:text_loss"}}
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    made = prepare(config("Normed", losses), mesh)
    (remark,) = made.remarks
    assert "batch field 'image', which the feature 'image' makes" in remark
    assert prepare(config("Normed", losses | {"p": PROJECTED}), mesh).remarks == []
