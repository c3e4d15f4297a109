"""Import paths: what is recorded, found again, and told of modules that cannot be imported."""

import json
import shutil
import sys

import pytest

import clipjax
from clipjax.cli import main
from clipjax.errors import UserError
from clipjax.imports import find_modules, import_paths, used_modules
from clipjax.registry import load, lookup

MODEL = '''
from clipjax.models.dual_encoder import DualEncoder


class Mine(DualEncoder):
    """Another name."""
'''
CONFIG = """
from pathlib import Path

from clipjax.config import import_file

tiny = import_file(Path({tiny!r}))


def get_config(arg=None):
    config = tiny.get_config("2")
    config.model.kind = "experiments.{name}.models:Mine"
    config.evals = {{}}
    return config
"""


@pytest.fixture
def project(tmp_path):
    """A project elsewhere with an experiment of its own; its modules are forgotten afterwards."""
    from tests.tiny_run import CONFIG as TINY

    def make(name):
        root = tmp_path / f"project_{name}"
        folder = root / "experiments" / name
        folder.mkdir(parents=True)
        (folder / "models.py").write_text(MODEL)
        (folder / "config.py").write_text(CONFIG.format(tiny=str(TINY), name=name))
        return root

    before = set(sys.modules), list(sys.path)
    yield make
    forget(*before)


def forget(modules, path):
    """As a new process."""
    for name in set(sys.modules) - modules:
        if name.startswith("experiments"):
            del sys.modules[name]
    sys.path[:] = path


def test_a_checkpoint_finds_its_modules_again(project, tmp_path, monkeypatch):
    before = set(sys.modules), list(sys.path)
    root, workdir = project("found"), tmp_path / "run"
    config = f"--config={root / 'experiments' / 'found' / 'config.py'}"
    assert main(["train", config, f"--workdir={workdir}"]) == 0
    modules = {"experiments.found.models": str(root)}
    assert json.loads((workdir / "modules.json").read_text()) == modules
    forget(*before)
    assert type(clipjax.load(workdir).module).__name__ == "Mine"
    # It has moved: one sentence, and the ways out.
    forget(*before)
    moved = tmp_path / "moved"
    shutil.move(root, moved)
    with pytest.raises(UserError) as error:
        clipjax.load(workdir)
    for part in (str(workdir), "experiments.found.models", str(root), "PYTHONPATH", "root"):
        assert part in str(error.value)
    target = tmp_path / "converted"
    assert main(["convert", f"--source={workdir}", f"--target={target}"]) == 2
    assert type(clipjax.load(workdir, root=moved).module).__name__ == "Mine"
    # In the project's folder nothing need be said.
    forget(*before)
    monkeypatch.chdir(moved / "experiments")
    assert type(clipjax.load(workdir).module).__name__ == "Mine"
    assert main(["convert", f"--source={workdir}", f"--target={target}"]) == 0


def test_which_strings_are_import_paths():
    config = {
        "model": {"kind": "a.b:C", "teacher": {"kind": "vit"}},
        "losses": {"x": {"kind": "a.b:loss"}, "y": {"kind": "d:loss"}},
        "optim": {"name": "e:adam", "schedule": "f.g:cosine"},
        "data": {"files": "gs://bucket:x", "sources": {"s": {"kind": "tars", "url": "h:i"}}},
        "init": {"": "C:weights"},
    }
    assert import_paths(config) == ["a.b:C", "a.b:loss", "d:loss", "e:adam", "f.g:cosine"]


def test_modules_are_recorded_with_their_root():
    import tests.tiny_parts as parts

    root = parts.__file__.removesuffix("/tests/tiny_parts.py")
    config = {"a": {"kind": "tests.tiny_parts:Flawed"}, "b": {"kind": "clipjax.evals.x:Y"}}
    assert used_modules(config) == {"tests.tiny_parts": root}
    assert used_modules({"kind": "no.such:thing"}) == {"no.such": ""}


def test_losses_that_cannot_be_found_do_not_keep_a_model_from_loading():
    config = {"model": {"kind": "dual_encoder"}, "losses": {"x": {"kind": "no.such:loss"}}}
    find_modules(config, {}, "runs/x")
    with pytest.raises(UserError, match=r"The checkpoint 'runs/x' needs 'no\.such:Model'"):
        find_modules({"model": {"kind": "no.such:Model"}}, {}, "runs/x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import no_such_package\n",
            r"broken\.py, line 1: ModuleNotFoundError: No module named 'no_",
        ),
        (
            "\n\nfrom os import nothing\n",
            r"broken\.py, line 3: ImportError: cannot import name 'not",
        ),
        ("def f(:\n", r"broken\.py, line 1: SyntaxError"),
        ("x = 1\ny = x / 0\n", r"broken\.py, line 2: ZeroDivisionError: division by zero"),
        (
            "import jax.numpy as jnp\nx = jnp.zeros((2, 3)) @ jnp.zeros(4)\n",
            r"broken\.py, line 2: ",
        ),
        ("def losss(): ...\n", r"module 'broken' has no attribute 'loss' \(did you mean 'losss'"),
    ],
)
def test_what_is_wrong_inside_a_module_names_file_and_line(tmp_path, monkeypatch, text, message):
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(UserError, match=f"^The loss 'broken:loss' cannot be imported: .*{message}"):
        lookup("broken:loss", {}, "loss")


def test_a_module_that_is_nowhere_tells_the_way_out():
    with pytest.raises(UserError, match="there is no module 'nowhere'; put the folder that holds"):
        load("nowhere.losses:mine", "The loss 'nowhere.losses:mine'")
