"""`checkpoint.frozen_once`: what no step changes is saved once, and every reader finds it."""

import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import clipjax
from clipjax import checkpoint, rules
from clipjax.checkpoint import Checkpointer
from clipjax.cli import main
from clipjax.convert.orbax import open_params
from clipjax.errors import UserError
from clipjax.mesh import make_mesh
from clipjax.prepare import prepare
from clipjax.step import init_state
from tests.tiny_run import CONFIG, start, tiny_config, trajectory

FREEZE = "optim.freeze=(('image/.*', True), ('.*', False))"
SETTINGS = (FREEZE, "checkpoint.keep=None", "log.every='1 steps'", "evals={}")
ONCE = "checkpoint.frozen_once=True"


def train(workdir, *overrides):
    command = ["train", f"--config={CONFIG}:6", f"--workdir={workdir}"]
    assert main([*command, *(f"--config.{o}" for o in (*SETTINGS, *overrides))]) == 0


def folders(workdir):
    """(samples of the checkpoints, names of the folders with frozen parameters)."""
    names = [p.name for p in (workdir / "checkpoints").iterdir()]
    frozen = sorted(p.name for p in workdir.glob("checkpoints/frozen/*"))
    return sorted(int(name) for name in names if name != "frozen"), frozen


def params_of(path):
    return rules.paths(clipjax.load(path).params)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for path, x in a.items():
        np.testing.assert_array_equal(np.asarray(x), np.asarray(b[path]), err_msg=path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs of the same run, saved whole and saved once."""
    root = tmp_path_factory.mktemp("frozen_once")
    train(root / "whole")
    train(root / "once", ONCE)
    return root / "whole", root / "once"


def test_what_no_step_changes():
    config = tiny_config(*SETTINGS)
    made = prepare(config, make_mesh({"data": 1}, jax.devices()[:1]))
    params = rules.paths(made.state.params)
    assert made.unchanged == {path for path in params if path.startswith("image/")}
    assert not prepare(tiny_config(), make_mesh({"data": 1}, jax.devices()[:1])).unchanged
    follow = "optim.follow=(('image/norm_post/scale', 'text/norm_post/scale', 0.5),)"
    followed = prepare(tiny_config(*SETTINGS, follow), make_mesh({"data": 1}, jax.devices()[:1]))
    assert followed.unchanged == made.unchanged - {"image/norm_post/scale"}


def test_one_folder_for_all_checkpoints(runs):
    whole, once = runs
    samples, frozen = folders(once)
    assert (samples, []) == folders(whole)
    assert [name.rpartition("-")[0] for name in frozen] == [str(samples[0])]
    place = once / "checkpoints" / str(samples[-1])
    with_frozen = rules.paths(checkpoint.parameter_metadata(checkpoint.find(place)))
    assert with_frozen.keys() == params_of(whole).keys()
    own, _, apart = checkpoint._parted(checkpoint.find(place), with_frozen)
    assert apart.keys() == {path for path in with_frozen if path.startswith("image/")}
    held = ocp.StandardCheckpointHandler().metadata(place / "params").tree
    assert own
    assert rules.paths(held).keys() == own.keys()


def test_every_checkpoint_is_read_as_a_whole_one(runs):
    whole, once = runs
    assert trajectory(whole) == trajectory(once)
    for samples in folders(once)[0]:
        place = ("checkpoints", str(samples))
        assert_same(params_of(once.joinpath(*place)), params_of(whole.joinpath(*place)))


def test_a_run_goes_on(runs, tmp_path):
    _, once = runs
    shutil.copytree(once, tmp_path / "again")
    samples, frozen = folders(once)
    for later in samples[1:]:
        shutil.rmtree(tmp_path / "again" / "checkpoints" / str(later))
    train(tmp_path / "again", ONCE)
    assert folders(tmp_path / "again") == (samples, frozen)
    assert trajectory(tmp_path / "again") == trajectory(once)
    assert_same(params_of(tmp_path / "again"), params_of(once))


@pytest.mark.parametrize("first", [False, True])
def test_the_setting_may_change_between_starts(runs, tmp_path, first):
    """A run begun in one way goes on in the other, and each checkpoint stays readable."""
    begun, other = runs[first], f"checkpoint.frozen_once={not first}"
    shutil.copytree(begun, tmp_path / "other")
    samples, _ = folders(begun)
    for later in samples[1:]:
        shutil.rmtree(tmp_path / "other" / "checkpoints" / str(later))
    train(tmp_path / "other", other)
    found, frozen = folders(tmp_path / "other")
    assert found == samples
    wanted = [str(samples[0 if first else 1])]
    assert [name.rpartition("-")[0] for name in frozen] == wanted
    for place in samples:
        found = params_of(tmp_path / "other" / "checkpoints" / str(place))
        assert_same(found, params_of(begun / "checkpoints" / str(place)))


def test_a_checkpoint_without_its_folder(runs, tmp_path):
    _, once = runs
    last = str(folders(once)[0][-1])
    shutil.copytree(once / "checkpoints" / last, tmp_path / last)
    with pytest.raises(
        UserError, match=r"in the folder 'frozen/\d+-\w+' beside it, which is not there"
    ):
        clipjax.load(tmp_path / last)
    whole = tmp_path / "whole"
    source = once / "checkpoints" / last
    assert main(["stage", "--stage=rewrite", f"--source={source}", f"--target={whole}"]) == 0
    assert_same(params_of(whole), params_of(once))
    assert not (whole / "frozen").exists()


def test_a_run_of_the_first_version_goes_on(runs, tmp_path):
    """Its folder lay among the checkpoints; it stays there, and later checkpoints name it, too."""
    _, once = runs
    samples, (frozen,) = folders(once)
    old, places = tmp_path / "old", tmp_path / "old" / "checkpoints"
    shutil.copytree(once, old)
    (places / "frozen" / frozen).rename(places / f"frozen-{frozen}")
    (places / "frozen").rmdir()
    shutil.rmtree(places / str(samples[-1]))
    for place in samples[:-1]:
        (named,) = (places / str(place) / "frozen").rglob("metadata")
        named.write_text(named.read_text().replace(frozen, f"frozen-{frozen}"))
    train(old, ONCE)
    assert not (places / "frozen").exists()
    assert_same(params_of(old), params_of(once))


def test_checkpoints_of_two_runs_side_by_side(tmp_path):
    """Copied with their folders into one place, each has its own; a link to one is read where it leads."""
    for number, name in enumerate(("a", "b")):
        writer = Checkpointer(tmp_path / name, once=frozenset(["teacher"]), token=number)
        params = {"teacher": np.full(3, number, np.float32), "w": np.full(2, number, np.float32)}
        meta = {"samples": 8, "config": {}}
        writer.save(8, params, {"step": np.int32(1)}, meta, {"config": None, "files": {}})
        writer.close()
        shutil.copytree(tmp_path / name / "checkpoints" / "8", tmp_path / "models" / name)
        (frozen,) = folders(tmp_path / name)[1]
        place = Path("frozen", frozen)
        shutil.copytree(tmp_path / name / "checkpoints" / place, tmp_path / "models" / place)
    (tmp_path / "link").symlink_to(tmp_path / "models" / "b")
    for place, number in (("models/a", 0), ("models/b", 1), ("link", 1)):
        for path, tensor in open_params(checkpoint.find(tmp_path / place)).items():
            np.testing.assert_array_equal(tensor.read(), number, err_msg=f"{place}: {path}")


def test_the_newest_alone_is_kept(runs, tmp_path):
    train(tmp_path / "kept", ONCE, "checkpoint.keep=1")
    samples, frozen = folders(tmp_path / "kept")
    assert samples == folders(runs[1])[0][-1:]
    assert len(frozen) == 1
    assert_same(params_of(tmp_path / "kept"), params_of(runs[1]))


def test_nothing_to_save_once_is_said():
    made = prepare(tiny_config(ONCE), make_mesh({"data": 1}, jax.devices()[:1]))
    assert any("frozen_once saves nothing apart" in remark for remark in made.remarks)


def test_a_refresh_changes_what_would_be_saved_once():
    refresh = "refreshes={'x': {'kind': 'tests.tiny_core:refresh', 'every': '1 steps'}}"
    config = tiny_config(*SETTINGS, ONCE, refresh)
    with pytest.raises(UserError, match="frozen_once does not go with"):
        prepare(config, make_mesh({"data": 1}, jax.devices()[:1]))


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 4, "tensor": 2}, {"data": 1}])
def test_on_another_mesh(tmp_path, sizes):
    config = tiny_config(*SETTINGS)
    made = prepare(config, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    state = init_state(made.model, made.config, made.optimizer, made.mesh)
    assert made.unchanged
    writer = Checkpointer(tmp_path, once=made.unchanged)
    train_state = {"step": state.step, "optimizer": state.optimizer, "ema": state.ema}
    writer.save(8, state.params, train_state, {"samples": 8}, {"config": None, "files": {}})
    writer.close()
    assert folders(tmp_path) == ([8], ["8-00000000"])
    count = int(np.prod(list(sizes.values())))
    like = prepare(config, make_mesh(sizes, jax.devices()[:count])).state
    reader = Checkpointer(tmp_path)
    train_like = {"step": like.step, "optimizer": like.optimizer, "ema": like.ema}
    params, _, _ = reader.restore(8, like.params, train_like)
    reader.close()
    assert_same(rules.paths(params), rules.paths(state.params))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(like.params), strict=True):
        assert a.sharding == b.sharding


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path):
    """Killed as soon as the folder is there, when no checkpoint may refer to it yet, and started again."""
    straight, killed, settings = tmp_path / "straight", tmp_path / "killed", (*SETTINGS, ONCE)
    assert start(straight, *settings, steps=6).wait() == 0
    process = start(killed, *settings, steps=6)
    whole = lambda: list(killed.glob("checkpoints/frozen/*-????????"))  # noqa: E731
    deadline = time.monotonic() + 300
    while not whole() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert whole()
    assert start(killed, *settings, steps=6).wait() == 0
    assert folders(killed)[0] == folders(straight)[0]
    assert_same(params_of(killed), params_of(straight))
