"""Stages: a checkpoint in, another one out, and what is refused."""

import json

import numpy as np
import pytest

import clipjax
from clipjax import checkpoint, rules
from clipjax.cli import main
from clipjax.convert.shapes import parameter_shapes
from clipjax.convert.source import open_source
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.models import model_section
from clipjax.stages import apply

PARTS = "tests.tiny_stages"


def leaves(path):
    return {name: np.asarray(tensor.read()) for name, tensor in open_source(path).params.items()}


def test_a_stage_changes_parameters_config_and_rows_of_texts(tiny_run, tmp_path, capsys):
    target = tmp_path / "long"
    given = ["stage", f"--stage={PARTS}:stretch", f"--source={tiny_run}", f"--target={target}"]
    assert main([*given, "--stage.length=12", "--stage.scale=0.5"]) == 0
    old, new = leaves(tiny_run), leaves(target)
    assert old.keys() == new.keys()
    table = new.pop("text/position_embedding")
    assert table.shape == (12, 16)
    np.testing.assert_array_equal(table[:8], old["text/position_embedding"])
    np.testing.assert_array_equal(table[8:], [0.5 * table[7]] * 4)
    for name, leaf in new.items():
        np.testing.assert_array_equal(leaf, old[name])
        assert leaf.dtype == old[name].dtype
    model = clipjax.load(target)
    assert model.config.model.text.length == model.tokenizer.length == 12
    assert model.tokenizer(["a cat"]).shape == (1, 12)
    assert np.isfinite(model.encode_text(["a cat"])).all()
    meta, _ = checkpoint.read_meta(checkpoint.find(target))
    assert meta["samples"] == 32
    (stage,) = meta["stages"]
    assert stage["settings"] == {"length": 12, "scale": 0.5}
    # A second stage on it is remembered too; the target stays as it was.
    apply("rewrite", str(target), str(tmp_path / "again"))
    meta, _ = checkpoint.read_meta(checkpoint.find(tmp_path / "again"))
    assert [s["stage"] for s in meta["stages"]] == [f"{PARTS}:stretch", "rewrite"]
    assert main([*given, "--stage.length=12"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_rewrite_keeps_the_averages_a_run_has(tiny_run, tmp_path):
    apply("rewrite", str(tiny_run), str(tmp_path / "new"))
    old, new = leaves(tiny_run), leaves(tmp_path / "new")
    assert all(old[name].tobytes() == new[name].tobytes() for name in old)
    found, wanted = clipjax.load(tmp_path / "new"), clipjax.load(tiny_run)
    assert rules.paths(found.params).keys() == rules.paths(wanted.params).keys()
    assert json.loads(found.config.to_json()) == json.loads(wanted.config.to_json())


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        ("rewriet", {}, "no stage named 'rewriet' .did you mean 'rewrite'"),
        (f"{PARTS}:stretch", {}, r"stretch' needs the setting\(s\) length"),
        (
            f"{PARTS}:stretch",
            {"lenght": 1},
            r"stretch' has no setting 'lenght' \(did you mean 'len",
        ),
        (f"{PARTS}:gone", {}, "has no attribute 'gone'"),
        ("no.such:stage", {}, "there is no module 'no'; put the folder that holds 'no'"),
        (f"{PARTS}:forgets", {}, r"forgets' must return \(params, config\), not a dict"),
        (f"{PARTS}:string", {}, r"string' must return \(nested dict of arrays, ConfigDict\), not"),
        (f"{PARTS}:number", {}, "gives 'logit_scale' as a int, not as an array"),
        (f"{PARTS}:unknown", {}, "gives a config.model that is none: .*'no_encoder'"),
        (f"{PARTS}:alone", {}, r"must take \(params, config, \*\*settings\)"),
        (
            f"{PARTS}:half",
            {},
            r"half' gives parameters that its config.model does not fit: logit_scale is missing; extra is left over; "
            r"text/position_embedding has shape \[2, 16\], the model wants \[8, 16\]",
        ),
    ],
)
def test_what_is_wrong_with_a_stage_is_one_sentence(tiny_run, tmp_path, stage, settings, message):
    with pytest.raises(UserError, match=message):
        apply(stage, str(tiny_run), str(tmp_path / "new"), settings)
    assert not (tmp_path / "new").exists()


def test_settings_of_the_command(tiny_run, tmp_path, capsys):
    given = ["stage", "--stage=rewrite", f"--source={tiny_run}", f"--target={tmp_path / 'new'}"]
    assert main([*given, "--stage.a"]) == 2
    assert "has no value; write --stage.a=VALUE" in capsys.readouterr().err
    assert main([*given, "--stage.a=1", "--stage.a=2"]) == 2
    assert "--stage.a is given twice" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", f"--checkpoint={tiny_run}", "--stage.a=1"])


def test_the_import_root_of_the_command(tiny_run, tmp_path, monkeypatch):
    """The stage of a project elsewhere, named by its folder or found from the current directory."""
    for name in ("one", "two"):
        package = tmp_path / name / "experiments" / f"mine_{name}"
        package.mkdir(parents=True)
        (package / "stages.py").write_text("def keep(params, config):\n    return params, config\n")
    given = ["stage", f"--source={tiny_run}"]
    stage, root = "experiments.mine_one.stages:keep", f"--import-root={tmp_path / 'one'}"
    assert main([*given, f"--stage={stage}", f"--target={tmp_path / 'a'}", root]) == 0
    monkeypatch.chdir(tmp_path / "two" / "experiments")
    stage = "experiments.mine_two.stages:keep"
    assert main([*given, f"--stage={stage}", f"--target={tmp_path / 'b'}"]) == 0


def test_a_model_of_fields_of_its_own_has_its_shapes_from_the_features():
    config = base_config()
    config.model = model_section(kind=f"{PARTS}:Words")
    config.data.features = {"words": {"kind": "column", "dtype": "int32", "shape": (3,)}}
    assert parameter_shapes(config.model, config)["table"].shape == (7, 3)
