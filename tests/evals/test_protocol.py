"""The protocol of evaluators: what they are given, what is checked, units; and the public encoder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax.cli import main
from clipjax.commands.eval import results_table
from clipjax.data.bad import BadRecord
from clipjax.errors import UserError
from clipjax.evals import Filtered, make_evaluator, make_evaluators, shown, unit
from clipjax.mesh import make_mesh
from clipjax.models.dual_encoder import DualEncoder
from clipjax.prepare import prepare
from tests.tiny_config import get_config as tiny_config

OWN = "tests.evals.own"
NOISE = {"kind": "synthetic", "size": 16, "length": 6}


@pytest.fixture(scope="module")
def model(tiny_run):
    return clipjax.load(tiny_run)


def test_an_evaluator_of_an_experiment_sees_all_that_it_needs(model):
    entry = {"kind": f"{OWN}:Means", "source": NOISE, "count": 5, "every": "10%"}
    evaluator = make_evaluators({"mine": entry}, model.encoder)["mine"]
    assert evaluator.protocol == {"units": {"tokens": "", "length": "words"}}
    found = evaluator.run(model.params)
    assert all(type(value) is float for value in found.values())
    assert evaluator.protocol["images"] == 5
    assert evaluator.galleries(model.params) == []


def test_several_sources_or_none(model):
    more = NOISE | {"length": 3}
    entry = {"kind": f"{OWN}:Two", "sources": {"a": NOISE, "b": more}}
    assert make_evaluator("x", entry, model.encoder).run(None) == {"ratio": 2.0}
    found = make_evaluator("x", {"kind": f"{OWN}:Alone"}, model.encoder).run(model.params)
    assert found["scale"] == pytest.approx(model.logit_scale)


class Records(list):
    def __getitem__(self, place):
        record = super().__getitem__(place)
        if record is None:
            raise BadRecord("json is broken")
        return record


def test_the_filter_of_an_evaluator_s_source(model):
    drawings = {"kind": "drawings", "split": "unseen", "styles": ("fluent_3d",)}
    found = {}
    for name, wanted in (("all", None), ("some", {"values": {"category": "Objects"}})):
        source = drawings | ({} if wanted is None else {"filter": wanted})
        entry = {"kind": "zero_shot", "source": source, "label_field": "name"}
        evaluator = make_evaluator(name, entry, model.encoder)
        evaluator.run(model.params)
        found[name] = evaluator.protocol["records"]
    assert 0 < found["some"] < found["all"]
    nothing = drawings | {"filter": {"values": {"category": "Nothing"}}}
    with pytest.raises(UserError, match="filter of source 'x' turns down all of its"):
        make_evaluator("x", {"kind": "retrieval", "source": nothing}, model.encoder)
    # What cannot be read stays, for the evaluator to tell.
    some = Filtered(Records([{"n": 1}, None, {"n": 3}]), lambda record: record["n"] > 1)
    assert len(some) == 2
    assert some[1] == {"n": 3}
    with pytest.raises(BadRecord):
        some[0]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "evaluator 'x' needs a 'kind'"),
        ({"kind": "retrieval"}, "evaluator 'x' needs a 'source'"),
        ({"kind": f"{OWN}:Two"}, "evaluator 'x' needs 'sources', several of them by name"),
        ({"kind": f"{OWN}:Two", "sources": 3}, "'sources' of the evaluator 'x' must be a section"),
        ({"kind": f"{OWN}:Two", "sources": {"a": {"kind": "synthetik"}}}, "no source named 'synth"),
        ({"kind": f"{OWN}:Alone", "source": NOISE}, r"'x' \(tests.evals.own:Alone\) takes no 'sou"),
        ({"kind": f"{OWN}:Alone", "cuont": 1}, "Evaluator 'x' has no setting 'cuont'"),
        ({"kind": f"{OWN}:NoRun"}, "'tests.evals.own:NoRun' has no method run"),
        ({"kind": f"{OWN}:NoEncoder"}, "'tests.evals.own:NoEncoder' must take 'encoder'"),
        ({"kind": f"{OWN}:BadUnits"}, "units of the evaluator 'tests.evals.own:BadUnits' must be"),
        ({"kind": f"{OWN}:Gone"}, "module 'tests.evals.own' has no attribute 'Gone'"),
        ({"kind": "retrieval", "source": NOISE | {"filter": {"min": 1}}}, "has no setting 'min'"),
    ],
)
def test_mistakes_at_the_start(model, entry, message):
    with pytest.raises(UserError, match=message):
        make_evaluator("x", entry, model.encoder)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("list", "not a list"),
        ("array", "but 'x' is array"),
        ("text", "but 'x' is '0.5'"),
        ("none", "but 'x' is None"),
        ("bool", "but 'x' is True"),
        ("number", r"but it has the names \[1\]"),
    ],
)
def test_what_run_returns_is_checked(what, message):
    evaluator = make_evaluator("x", {"kind": f"{OWN}:Returns", "what": what}, None)
    with pytest.raises(UserError, match=f"'tests.evals.own:Returns' must return .*{message}"):
        evaluator.run(None)


def test_a_mistake_in_an_evaluator_is_one_sentence():
    with pytest.raises(
        UserError, match=r"evaluator 'x' .*Fails\) fails at line \d+ of own.py: KeyError: 'labels'"
    ):
        make_evaluator("x", {"kind": f"{OWN}:Fails", "when": "start"}, None)
    evaluator = make_evaluator("x", {"kind": f"{OWN}:Fails"}, None)
    with pytest.raises(
        UserError, match=r"evaluator 'x' .*Fails\) fails at line \d+ of own.py: KeyError: 'labels'"
    ):
        evaluator.run(None)


def test_a_peer_that_is_gone_is_no_mistake():
    """The watchdog must see it as it is, so that the job ends with "try again"."""
    evaluator = make_evaluator("x", {"kind": f"{OWN}:Fails", "when": "gone"}, None)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Connection closed by peer"):
        evaluator.run(None)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "zero_shot", "source": {"kind": "gone"}, "cuont": 3}, "no setting 'cuont'"),
        ({"kind": "zero_shto", "source": NOISE}, "no evaluator named 'zero_shto' .did you mean"),
        ({"kind": f"{OWN}:NoRun"}, "'tests.evals.own:NoRun' has no method run"),
        ({"kind": "retrieval"}, "evaluator 'x' needs a 'source'"),
    ],
)
def test_show_and_plan_find_mistakes_in_evaluators(entry, message):
    """They open no evaluator's source: this one's files are not there."""
    config = tiny_config()
    config.evals = {"x": entry}
    with pytest.raises(UserError, match=message):
        prepare(config, make_mesh({"data": 1}, jax.devices()[:1]))
    config.evals = {"x": {"kind": "retrieval", "source": {"kind": "tars", "files": "gone/*.tar"}}}
    assert prepare(config, make_mesh({"data": 1}, jax.devices()[:1]))


def test_a_protocol_that_json_cannot_hold():
    entry = {"kind": f"{OWN}:Returns", "what": "good", "note": "set"}
    evaluator = make_evaluator("x", entry, None)
    assert evaluator.run(None) == {"x": 1.0}
    with pytest.raises(
        UserError, match=r"protocol of .*Returns' must be a dict that JSON can hold"
    ):
        _ = evaluator.protocol


def test_units_on_the_console():
    assert unit("acc", 0.5, {}) == "%"
    assert unit("length", 6.1, {}) == ""
    assert unit("share", 0.5, {"share": ""}) == ""
    assert shown(0.123, "%") == "12.30"
    assert shown(6.1, "words") == "6.10"
    results = {
        "x": {
            "metrics": {"length": 6.1, "acc": 0.25},
            "protocol": {"units": {"length": "words"}, "chance": {"acc": 0.1, "length": 2.0}},
        }
    }
    table = results_table(results, "title")
    columns = [list(column.cells) for column in table.columns]
    assert columns == [
        ["x", "x"],
        ["length", "acc"],
        ["6.10", "25.00"],
        ["2.00", "10.00"],
        ["words", "%"],
    ]


def test_units_reach_the_results_of_a_run(tmp_path, capsys):
    config = "tests/tiny_config.py"
    entry = {"mine": {"kind": f"{OWN}:Means", "source": NOISE}}
    given = ["train", f"--config={config}", f"--workdir={tmp_path}", f"--config.evals={entry}"]
    assert main([*given, "--config.total_samples=8"]) == 0
    found = json.loads((tmp_path / "results.json").read_text())["mine"]
    assert found["protocol"]["units"] == {"tokens": "", "length": "words"}
    assert "6.10" in capsys.readouterr().out


def test_outputs_of_any_number_of_rows(model):
    encoder = model.encoder
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (16, 16, 3), np.uint8) for _ in range(encoder.batch_size + 3)]
    batch = encoder.batch(images=images, texts=["a cat"] * len(images))
    found = encoder.outputs(model.params, batch)
    assert found["image_embedding"].shape == (len(images), encoder.width)
    assert found["image_tokens"].shape == (len(images), 4, 16)
    assert found["logit_scale"].shape == ()
    assert all(isinstance(x, np.ndarray) for x in found.values())
    np.testing.assert_array_equal(found["image_embedding"], encoder.images(model.params, images))
    np.testing.assert_array_equal(
        found["text_embedding"], encoder.texts(model.params, ["a cat"] * len(images))
    )
    some = {name: array[:1] for name, array in batch.items()}
    one = encoder.outputs(model.params, some, only=("image_tokens",))
    assert list(one) == ["image_tokens"]
    np.testing.assert_allclose(one["image_tokens"], found["image_tokens"][:1], atol=1e-6)


def test_what_outputs_refuses(model):
    encoder = model.encoder
    batch = encoder.batch(texts=["a cat"])
    with pytest.raises(UserError, match=r"no output 'text_embeddign' .*did you mean 'text_emb"):
        encoder.outputs(model.params, batch, only=("text_embeddign",))
    with pytest.raises(UserError, match="one number of rows"):
        encoder.outputs(model.params, batch | {"image": np.zeros((2, 16, 16, 3), np.uint8)})
    with pytest.raises(UserError, match="one number of rows"):
        encoder.outputs(model.params, {})


def test_what_the_encoder_shows(model):
    encoder = model.encoder
    assert encoder.module is model.module
    assert encoder.config is model.config
    assert encoder.preprocess["resize"] == "squash"
    assert encoder.tokenizer.decode(encoder.ids(["A cat"])[0]) == "a cat"
    assert encoder.mesh.size == 8


class Doubled(DualEncoder):
    """Embeddings twice as wide as `embed_dim` says."""

    def __call__(self, batch, *, train=False):
        outputs = super().__call__(batch, train=train)
        name = "image_embedding"
        twice = jnp.concatenate([outputs[name], outputs[name]], axis=-1) / 2**0.5
        return outputs | {name: twice}


def test_the_width_is_that_of_the_embeddings(model):
    width = model.config.model.embed_dim
    assert model.encoder.width == width
    towers = dict(image=model.encoder.module.image, text=model.encoder.module.text)
    module = Doubled(**towers, embed_dim=width, init_bias=-1.0)
    encoder = type(model.encoder)(module, model.config, None, model.encoder.mesh)
    assert encoder.width == 2 * width
    assert encoder.images(model.params, []).shape == (0, 2 * width)
    assert encoder.images(model.params, [np.zeros((16, 16, 3), np.uint8)]).shape == (1, 2 * width)


class Whole:
    """A model that gives nothing for an image alone."""

    def apply(self, variables, batch):
        return {"image_embedding": batch["image"] + batch["boxes"]}


def test_a_model_without_towers_and_one_that_reads_more(model):
    config = model.config.to_dict()
    encoder = type(model.encoder)(Whole(), config, None, model.encoder.mesh)
    with pytest.raises(UserError, match="The model Whole reads 'boxes', so it gives nothing for"):
        encoder.images({}, [np.zeros((16, 16, 3), np.uint8)])
    with pytest.raises(UserError, match="came without a tokenizer"):
        encoder.texts({}, ["a"])
    bare = type(model.encoder)(
        Whole(), {"model": {"kind": "x"}, "preprocess": {}}, None, encoder.mesh
    )
    for read in (bare.images, bare.texts):
        with pytest.raises(UserError, match=r"This model has no .* tower"):
            read({}, ["a"])
    with pytest.raises(UserError, match="no tower, so it has no embeddings of a known width"):
        _ = bare.width
    found = bare.outputs({}, {"image": np.ones((3, 2)), "boxes": np.ones((3, 2))})
    np.testing.assert_array_equal(found["image_embedding"], np.full((3, 2), 2.0))


def test_a_program_of_ones_own_gives_a_tree(model):
    encoder = model.encoder
    program = encoder.program(
        lambda params, batch: {"twice": 2 * batch["x"], "sum": (batch["x"].sum(1),)}
    )
    x = np.arange(14, dtype=np.float32).reshape(7, 2)
    found = encoder.apply(program, model.params, {"x": x}, encoder.whole(3))
    np.testing.assert_array_equal(found["twice"], 2 * x)
    np.testing.assert_array_equal(found["sum"][0], x.sum(1))
