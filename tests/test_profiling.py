"""Where a run's time goes, with a clock that the test turns; and what `--profile` traces."""

import gzip
import json
import re
import threading

import jax
import pytest

from clipjax.cli import main
from clipjax.errors import UserError
from clipjax.log.profiling import PARTS, Clock, Profile
from tests.tiny_run import CONFIG


class Step:
    """A step's result, which is there when the test says so."""

    def __init__(self):
        self.there = threading.Event()

    def block_until_ready(self):
        assert self.there.wait(timeout=30)

    def finish(self, clock):
        """Returns when the clock has noted it."""
        self.there.set()
        clock._finished.result(timeout=30)


class Loop:
    """A clock, and a train loop whose parts take the seconds that the test names."""

    def __init__(self):
        self.now, self.waits = 0.0, []
        self.clock = Clock(lambda: self.now)
        self._batches = self.clock.batches(self._source())

    def _source(self):
        while True:
            for wait in self.waits.pop(0):
                if isinstance(wait, Step):
                    wait.finish(self.clock)
                else:
                    self.now += wait
            yield None

    def batch(self, *waits):
        """Asks for a batch that takes that long; a step among the seconds finishes then."""
        self.waits.append(waits)
        next(self._batches)

    def dispatch(self):
        step = Step()
        self.clock.dispatched(step)
        return step

    def spend(self, name, seconds):
        with self.clock.part(name):
            self.now += seconds


@pytest.fixture
def loop():
    made = Loop()
    yield made
    made.clock.close()


def seconds(split, window):
    """The parts that are not zero, in seconds."""
    found = {k.removeprefix("time/"): v * window for k, v in split.items() if k != "goodput"}
    return pytest.approx({k: v for k, v in found.items() if v})


def test_every_part_of_the_time_is_counted_once(loop):
    loop.now = 5.0
    loop.clock.restart()
    loop.batch(2.0)  # before the first step nothing runs
    loop.spend("compile", 3.0)
    first = loop.dispatch()
    loop.batch(1.0)  # while the first step runs
    first.finish(loop.clock)
    second = loop.dispatch()
    loop.now += 1.0
    loop.batch(1.0, second, 3.0)  # the second ends when one of these seconds is over
    third = loop.dispatch()
    loop.now += 0.5
    third.finish(loop.clock)
    loop.now += 0.25  # the loop's own work
    loop.batch(2.0)
    loop.spend("evaluate", 2.0)
    loop.spend("save", 1.0)

    split = loop.clock.split()
    window = 16.75
    assert loop.now == 5 + window
    assert split.keys() == {"goodput", "time/step", *(f"time/{name}" for name in PARTS)}
    parts = {"input_wait": 2 + 3 + 2, "compile": 3, "evaluate": 2, "save": 1, "step": 3.75}
    assert parts == seconds(split, window)
    assert sum(v for k, v in split.items() if k != "goodput") == pytest.approx(1)
    assert split["goodput"] == pytest.approx(3.75 / (5 + window))

    loop.now += 4.0
    split = loop.clock.split()
    assert seconds(split, 4.0) == {"step": 4}
    assert split["goodput"] == pytest.approx((3.75 + 4) / (5 + window + 4))


def test_a_batch_that_comes_before_the_step_ends_costs_nothing(loop):
    loop.clock.restart()
    for _ in range(3):
        step = loop.dispatch()
        loop.batch(1.0)
        loop.now += 1.0
        step.finish(loop.clock)
    assert seconds(loop.clock.split(), 6.0) == {"step": 6}


def test_the_newest_step_decides_whether_devices_are_idle(loop):
    loop.clock.restart()
    old = loop.dispatch()
    old_is_noted = loop.clock._finished
    new = loop.dispatch()
    old.there.set()
    old_is_noted.result(timeout=30)
    loop.batch(3.0)
    new.finish(loop.clock)
    assert seconds(loop.clock.split(), 3.0) == {"step": 3}


def test_a_step_that_fails_does_not_stop_the_clock(loop):
    class Broken:
        def block_until_ready(self):
            raise RuntimeError("out of memory")

    loop.clock.restart()
    loop.clock.dispatched(Broken())
    loop.clock._finished.result(timeout=30)
    loop.batch(1.0)
    assert seconds(loop.clock.split(), 1.0) == {"input_wait": 1}


def test_the_end_of_the_batches_is_the_end_of_the_loop():
    clock = Clock()
    assert list(clock.batches([1, 2])) == [1, 2]
    clock.close()


@pytest.fixture
def traced(monkeypatch):
    """What happens, in order, with JAX's profiler replaced."""
    events = []
    monkeypatch.setattr(
        jax.profiler, "start_trace", lambda where: events.append(f"start {where.name}")
    )
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    return events


def follow(profile, events, steps=5):
    for number in range(1, steps + 1):
        profile.before(number, lambda: events.append("settle"))
        events.append(number)
        profile.after(number, lambda: events.append("settle"))
    profile.close()
    return events


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (None, [1, 2, 3, 4, 5]),
        ("2-3", [1, "settle", "start profile", 2, 3, "settle", "stop", 4, 5]),
        (" 4 ", [1, 2, 3, "settle", "start profile", 4, "settle", "stop", 5]),
        ("1-1", ["settle", "start profile", 1, "settle", "stop", 2, 3, 4, 5]),
        ("4-10", [1, 2, 3, "settle", "start profile", 4, 5, "stop"]),
        ("6-10", [1, 2, 3, 4, 5]),
    ],
)
def test_the_trace_has_the_steps_that_were_asked_for(steps, expected, traced, tmp_path):
    assert follow(Profile(steps, tmp_path), traced) == expected


def test_only_process_0_traces_but_all_wait(traced, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert follow(Profile("2-3", tmp_path), traced) == [1, "settle", 2, 3, "settle", 4, 5]


@pytest.mark.parametrize("steps", ["", "0", "0-3", "3-2", "-3", "3-", "2:3", "1-2-3", "ten", "1.5"])
def test_other_steps_are_refused_in_one_sentence(steps, tmp_path):
    with pytest.raises(UserError) as raised:
        Profile(steps, tmp_path)
    assert str(raised.value) == (
        f"--profile={steps} must be steps of this start, A or A-B from 1 on, such as --profile=10-14."
    )


def test_the_command_line_refuses_them_before_it_touches_the_workdir(tmp_path, capsys):
    workdir = tmp_path / "run"
    assert main(["train", f"--config={CONFIG}", f"--workdir={workdir}", "--profile=3-2"]) == 2
    assert capsys.readouterr().err.startswith("clipjax train: --profile=3-2 must be steps of this")
    assert not workdir.exists()


def run(workdir, profile):
    """The files that a run of 4 steps has traced, by their last suffix, and its lines of metrics."""
    settings = ["--config.evals={}", "--config.checkpoint.every=None", f"--profile={profile}"]
    assert main(["train", f"--config={CONFIG}:4", f"--workdir={workdir}", *settings]) == 0
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines] == [8, 16, 24, 32]
    return {p.suffix: p for p in (workdir / "profile").rglob("*") if p.is_file()}, lines


@pytest.mark.slow
def test_a_run_is_traced_and_says_where_its_time_went(tmp_path):
    files, lines = run(tmp_path / "run", "2-3")
    assert files[".pb"].name.endswith(".xplane.pb")
    events = json.loads(gzip.decompress(files[".gz"].read_bytes()))["traceEvents"]
    on_device_0 = re.compile(r"\[0\].*\(jit_step\)")
    assert len([e for e in events if on_device_0.fullmatch(e.get("name", ""))]) == 2
    for number, line in enumerate(lines):
        parts = {k: v for k, v in line.items() if k.startswith("time/")}
        assert parts.keys() == {"time/step", *(f"time/{name}" for name in PARTS)}
        assert min(parts.values()) >= 0
        assert sum(parts.values()) == pytest.approx(1)
        assert 0 < line["goodput"] <= 1
        assert (parts["time/compile"] > 0) == (number == 0)
        assert parts["time/evaluate"] == parts["time/save"] == 0  # what follows the last line


@pytest.mark.slow
@pytest.mark.parametrize(("profile", "some"), [("4-100", True), ("50", False)])
def test_a_run_that_ends_before_its_trace_ends_as_usual(profile, some, tmp_path):
    files, _ = run(tmp_path / "run", profile)
    assert bool(files) == some
    assert (tmp_path / "run" / "report.html").exists()
