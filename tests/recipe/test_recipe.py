"""Recipes: what is refused, what runs, what is never repeated."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipjax.cli import main
from clipjax.errors import UserError
from clipjax.recipe import load_recipe
from clipjax.recipe.running import choose

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "configs" / "tiny.py"
STEPS = "tests.recipe.steps"
HEAD = "from clipjax.recipe import *\nfrom clipjax.recipe import Column\n"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Steps are processes of their own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.fixture
def write(tmp_path):
    """Writes a recipe file whose list is the given text."""

    def write(steps, name="recipe.py"):
        file = tmp_path / name
        file.write_text(f"{HEAD}def get_recipe(arg=None):\n    return [{steps}]\n")
        return str(file)

    return write


def start(file, workdir, *more):
    return main(["recipe", f"--recipe={file}", f"--workdir={workdir}", *more])


def results(workdir, name):
    return json.loads((workdir / name / "results.json").read_text())


CHAIN = (
    f"call('a', '{STEPS}:write', value=3), call('b', '{STEPS}:double', source=folder('a')),"
    "table('t', {'a': 'a', 'b': 'b'}, {'value': 'value', 'half': 'deep/half'})"
)


def test_steps_run_in_order_once_and_are_tabled(write, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert start(write(CHAIN), workdir) == 0
    assert results(workdir, "b") == {"value": 6}
    text = capsys.readouterr().out
    assert "| a | 1 | 3.00 | 1.50 |" in text
    assert "| b | 1 | 6.00 |  |" in text
    assert "value (px)" in text
    assert (workdir / "t" / "table.md").read_text() in text
    mark = (workdir / "done" / "a.json").stat().st_mtime_ns
    assert start(write(CHAIN), workdir) == 0
    assert "2 of 2 steps are done already" in capsys.readouterr().out
    assert (workdir / "done" / "a.json").stat().st_mtime_ns == mark


def test_only_does_what_is_asked_and_what_it_needs(write, tmp_path, capsys):
    workdir, file = tmp_path / "run", write(CHAIN + f", call('c', '{STEPS}:told')")
    assert start(file, workdir, "--only=t") == 0  # a table makes do with what is there
    assert "Not finished: a, b" in capsys.readouterr().out
    assert start(file, workdir, "--only=b") == 0
    assert sorted(p.name for p in (workdir / "done").iterdir()) == ["a.json", "b.json"]
    assert choose(load_recipe(file), ["[ac]"]) == ["a", "c"]
    assert start(file, workdir, "--only=d") == 2
    assert "has no step 'd'" in capsys.readouterr().err


def test_a_finished_step_whose_definition_changed_is_refused(write, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert start(write(CHAIN), workdir) == 0
    capsys.readouterr()
    assert start(write(CHAIN.replace("value=3", "value=4")), workdir) == 2
    error = capsys.readouterr().err
    assert "'a' is finished, but was defined otherwise (settings.value: then 3, now 4)" in error
    # Done again by hand, what was made of it is refused too.
    (workdir / "done" / "a.json").unlink()
    assert start(write(CHAIN), workdir) == 2
    assert "'b' is finished, but the step 'a' that it was made from" in capsys.readouterr().err
    (workdir / "done" / "b.json").unlink()
    assert start(write(CHAIN), workdir) == 0


def test_a_failing_step_leaves_the_others(write, tmp_path, capsys):
    workdir = tmp_path / "run"
    steps = f"call('bad', '{STEPS}:fail'), call('b', '{STEPS}:told', after=('bad',)), call('c', '{STEPS}:told'),"
    for what in ("wrong", "not_json", "missing"):
        steps += f"call('{what}', '{STEPS}:{what}'),"
    assert start(write(steps), workdir) == 1
    text = capsys.readouterr().out
    assert "bad failed with status 1" in text
    assert "ValueError: on purpose" in text
    assert "b is left out: it needs bad" in text
    assert (
        "steps:wrong' must return None or a dict of results that JSON can hold, not a list" in text
    )
    assert "steps:not_json' must return None or a dict" in text
    assert "module 'tests.recipe.steps' has no attribute 'missing'" in text
    assert [p.name for p in (workdir / "done").iterdir()] == ["c.json"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_jobs_get_cores_of_their_own(write, tmp_path):
    workdir = tmp_path / "run"
    file = write(f"*[call(n, '{STEPS}:cores') for n in 'ab']")
    assert start(file, workdir, "--jobs=2") == 0
    a, b = (results(workdir, name) for name in "ab")
    assert not set(a["cores"]) & set(b["cores"])
    assert set(a["cores"]) | set(b["cores"]) == os.sched_getaffinity(0)
    assert start(file, workdir, "--jobs=1000") == 2


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_recipe_killed_alone_never_runs_a_step_twice(write, tmp_path):
    workdir, file = tmp_path / "run", write(f"call('s', '{STEPS}:slow')")
    command = [sys.executable, "-m", "clipjax.cli", "recipe", f"--recipe={file}"]
    first = subprocess.Popen([*command, f"--workdir={workdir}"])
    wait_for((workdir / "begun").exists)
    first.kill()
    first.wait()
    log = tmp_path / "second.log"
    with log.open("w") as out:
        second = subprocess.Popen([*command, f"--workdir={workdir}"], stdout=out)
        wait_for(lambda: "waiting for it" in log.read_text())
        (workdir / "go").write_text("")
        assert second.wait(60) == 0
    # Its own process ended well, but nobody was there to mark it: it is done again, after, not beside.
    assert (workdir / "ran").read_text() == "once\nonce\n"


def test_a_stop_reaches_the_steps(write, tmp_path):
    workdir, file = tmp_path / "run", write(f"call('s', '{STEPS}:slow')")
    command = [sys.executable, "-m", "clipjax.cli", "recipe", f"--recipe={file}"]
    process = subprocess.Popen([*command, f"--workdir={workdir}"])
    wait_for((workdir / "begun").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((workdir / "begun").read_text()), 0)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("1", "must return a list of steps"),
        ("train('a/b', 'c.py')", "cannot be named 'a/b'"),
        ("train('logs', 'c.py')", "cannot be named 'logs'"),
        ("call('a', 'm:f'), call('a', 'm:f')", "Two steps .* are named 'a'"),
        ("call('a', 'm:f', x='{bb}/y')", "needs 'bb', which is no other step"),
        ("call('a', 'm:f', after=('b',))", "needs 'b', which is no other step"),
        ("call('a', 'm:f', x='{b}'), call('b', 'm:f', x=folder('a'))", "a, b .* need each other"),
        ("call('a', 'm:f', x=get_recipe)", "has a setting 'x' that JSON cannot hold"),
        ("train('a', 'c.py', {'seed': object})", "not a plain Python value"),
        ("table('t', {'a': 'a'}, {})", "needs 'a', which is no other step"),
        ("table('t', {}, {}, compare=[('a', 'b', 'c')])", "compares the row 'a', which it has not"),
        ("table('t', {}, {}, baseline='a')", "has no row 'a'"),
        ("nothing", "fails at line 4: NameError"),
    ],
)
def test_what_cannot_be_a_recipe_is_refused(write, steps, message):
    with pytest.raises(UserError, match=message):
        load_recipe(write(steps))


def test_braces_that_are_no_step_stay(write, tmp_path):
    recipe = load_recipe(write(f"call('a', '{STEPS}:told', x='a photo of a {{}}, {{c}}')"))
    assert recipe.needs["a"] == ()


def test_a_bad_config_shows_before_anything_runs(write, tmp_path, capsys):
    file = write(f"call('a', '{STEPS}:told'), train('b', '{TINY}:4', {{'optim.lrr': 1}})")
    assert start(file, tmp_path / "run") == 2
    assert "did you mean 'lr'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_killed_train_step_goes_on_and_an_arm_can_start_from_it(write, tmp_path):
    """`overrides` reach the run, `{NAME}` in them is a checkpoint, and a resumed run is the whole run."""
    more = "'checkpoint.every': '2 steps', 'data.record_ids': True"
    steps = (
        f"train('first', '{TINY}:24', {{{more}}}),"
        f"*arms('{TINY}', ('4',), (0, 1), {{'init': {{'': folder('first')}}}}),"
        f"evaluate('again', folder('first'), suite='unseen'),"
        "table('t', rows(('4',), (0, 1)) | {'again': 'again'}, {'R': 'unseen/text_to_image/R@5'}, baseline='4')"
    )
    workdir, file = tmp_path / "run", write(steps)
    command = [sys.executable, "-m", "clipjax.cli", "recipe", f"--recipe={file}"]
    process = subprocess.Popen([*command, f"--workdir={workdir}", "--only=first"])
    ids = workdir / "first" / "sample_ids" / "0.jsonl"
    wait_for(lambda: ids.exists() and ids.read_text().count("\n") >= 5)
    os.killpg(int(_pid_of(workdir / "first")), signal.SIGKILL)
    process.wait(60)
    assert not (workdir / "done" / "first.json").exists()
    assert start(file, workdir) == 0
    lines = [json.loads(line)["step"] for line in ids.read_text().splitlines()]
    assert lines == list(range(1, 25))
    config = json.loads((workdir / "4-1" / "config.json").read_text())
    assert (config["seed"], config["init"]) == (1, {"": str(workdir / "first")})
    table = json.loads((workdir / "t" / "table.json").read_text())
    assert table["rows"]["4"]["seeds"] == 2
    (value,) = table["rows"]["again"]["cells"]["R"]["values"]
    wanted = json.loads((workdir / "first" / "results.json").read_text())
    assert value == wanted["unseen"]["metrics"]["text_to_image/R@5"]
    assert table["columns"]["R"]["chance"] > 0


def _pid_of(folder):
    """The process whose command line names a folder."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"--workdir={folder}".encode() in words:
            return place.parent.name
    raise AssertionError(f"no process works in {folder}")
