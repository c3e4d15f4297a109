"""Imports go down only: each part of clipjax may import what stands before it in `ORDER`, and nothing else."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = (
    *("errors", "platform", "imports", "named", "piecewise", "fields", "mesh", "registry"),
    *("rules", "config", "cost", "optim", "updates", "forward", "gradient_cache"),
    *("losses", "models", "objective", "data", "migrate", "batch", "defaults"),
    *("checkpoint", "job", "log", "data.commands", "workdir", "convert", "encode", "evals"),
    *("stages", "step", "prepare", "coupling", "refresh", "train", "plan", "recipe"),
    *("commands", "cli"),
)
# Side by side: neither knows the other.
APART = {("losses", "models"), ("models", "losses"), ("losses", "data"), ("data", "losses")}


def part(module: str) -> str:
    """The entry of `ORDER` that a module `clipjax.x.y` belongs to."""
    names = module.split(".")[1:]
    return "data.commands" if names[:2] == ["data", "commands"] else names[0]


def imports(file: Path):
    """Modules of this repository that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from whole if node.module == "clipjax" else [node.module]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


FILES = sorted((ROOT / "clipjax").rglob("*.py"))


def test_every_part_has_its_place():
    found = {
        part(".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        for f in FILES
        if f != ROOT / "clipjax" / "__init__.py"
    }
    assert found == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_arrows_run_down(name):
    wrong = []
    for file in FILES:
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module == "clipjax" or part(module) != name:
            continue
        for imported in imports(file):
            top = imported.split(".")[0]
            if top in ("experiments", "tests", "tools"):
                wrong.append(f"{module} imports {imported}")
            if top != "clipjax" or imported in ("clipjax", "clipjax.__version__"):
                continue
            other = part(imported)
            if ORDER.index(other) > ORDER.index(name) or (name, other) in APART:
                wrong.append(f"{module} imports {imported}")
    assert not wrong, wrong
