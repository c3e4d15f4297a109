import io
import json
import math
import os

import pytest

from clipjax.errors import UserError
from clipjax.log import writers
from clipjax.log.console import ConsoleWriter, format_seconds
from clipjax.log.writers import JsonlWriter, MultiWriter, read_jsonl


def write_lines(path, count):
    writer = JsonlWriter(path)
    for i in range(1, count + 1):
        writer.write(10 * i, i, {"loss": 1 / i})
    writer.close()


def samples(path):
    return [json.loads(line)["samples"] for line in path.read_text().splitlines()]


def test_jsonl_round_trip_with_non_finite_numbers(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    writer = JsonlWriter(path)
    writer.write(8, 1, {"loss": 0.1 + 0.2, "unseen/R@1": 1})
    writer.write(16, 2, {"loss": math.nan, "up": math.inf, "down": -math.inf})
    lines, bad = read_jsonl(path)  # readable while it is written
    writer.close()
    assert bad == 0
    assert lines[0] == {"samples": 8, "step": 1, "loss": 0.1 + 0.2, "unseen/R@1": 1.0}
    assert math.isnan(lines[1]["loss"])
    assert (lines[1]["up"], lines[1]["down"]) == (math.inf, -math.inf)
    for line in path.read_text().splitlines():  # strictly JSON
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
    with pytest.raises(ValueError, match="samples"):
        JsonlWriter(path).write(1, 1, {"samples": 2.0})


def test_appending_keeps_what_is_there(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, 2)
    JsonlWriter(path).write(30, 3, {"loss": 0.0})
    assert samples(path) == [10, 20, 30]


def test_resume_removes_the_lines_beyond_and_writes_nothing_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, 5)
    writer = JsonlWriter(path, resume_samples=30)
    assert samples(path) == [10, 20, 30]
    writer.write(40, 4, {"loss": 9.0})
    assert samples(path) == [10, 20, 30, 40]
    JsonlWriter(path, resume_samples=0).close()
    assert path.read_bytes() == b""
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_kill_at_any_byte_of_the_last_line_is_repaired(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, 3)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole) + 1):
        path.write_bytes(whole[:end])
        seen, bad = read_jsonl(path)
        JsonlWriter(path, resume_samples=30).write(40, 4, {"loss": 0.5})
        complete = end >= len(whole) - 1  # only the newline is missing
        assert samples(path) == ([10, 20, 30, 40] if complete else [10, 20, 40])
        assert bad == 0
        assert len(seen) == (3 if complete else 2)


def test_a_broken_line_inside_is_not_dropped_silently(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"samples": 1, "step": 1}\nnonsense\n{}\n{"samples": 2, "step": 2}\n')
    before = path.read_bytes()
    with pytest.raises(UserError, match="Line 2"):
        JsonlWriter(path, resume_samples=1)
    assert path.read_bytes() == before
    lines, bad = read_jsonl(path)
    assert ([line["samples"] for line in lines], bad) == ([1, 2], 2)


def test_a_kill_while_repairing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, 5)
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writers.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        JsonlWriter(path, resume_samples=20)
    assert path.read_bytes() == before


def test_results_round_trip_and_refuse_foreign_files(tmp_path):
    path = tmp_path / "results.json"
    assert writers.read_results(path) == {}
    results = {
        "unseen": {"samples": 640, "metrics": {"text_to_image/R@1": 0.5}, "protocol": {"texts": 3}},
        "broken": {"samples": 640, "metrics": {"acc@1": math.nan}},
    }
    writers.write_results(path, results)
    again = writers.read_results(path)
    assert again["unseen"] == results["unseen"]
    assert math.isnan(again["broken"]["metrics"]["acc@1"])
    assert os.listdir(tmp_path) == ["results.json"]
    for foreign in ("[]", "{", '{"a": 1}', '{"a": {"samples": 1}}'):
        path.write_text(foreign)
        with pytest.raises(UserError, match="not a results file"):
            writers.read_results(path)


def test_multi_writer_writes_and_closes_all(tmp_path):
    class Fake:
        def __init__(self, fails=False):
            self.calls, self.closed, self.fails = [], False, fails

        def write(self, samples, step, metrics):
            self.calls.append((samples, step, metrics))

        def close(self):
            self.closed = True
            if self.fails:
                raise OSError("disk full")

    first, second = Fake(fails=True), Fake()
    multi = MultiWriter([first, second])
    multi.write(1, 2, {"loss": 3.0})
    with pytest.raises(OSError, match="disk full"):
        multi.close()
    assert first.calls == second.calls == [(1, 2, {"loss": 3.0})]
    assert second.closed


def test_tensorboard_events_hold_samples_as_steps(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    writer = writers.TensorBoardWriter(tmp_path, resume_samples=64)
    writer.write(128, 2, {"loss": 0.25})
    writer.close()
    (file,) = tmp_path.glob("events.*")
    data, events = file.read_bytes(), []
    while data:  # a record: length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert scalars == [(128, "loss", 0.25)]
    assert any(e.step == 65 and e.session_log.status == 1 for e in events)  # hides what lies beyond


def test_wandb_missing_names_the_way_out(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"clipjax\[wandb\]"):
        writers.WandbWriter("project", name="run")


def test_wandb_gets_samples_as_its_axis(monkeypatch, tmp_path):
    import sys
    from types import SimpleNamespace

    logged, started = [], {}
    run = SimpleNamespace(
        define_metric=lambda *a, **k: None, log=logged.append, finish=lambda: logged.append("end")
    )
    fake = SimpleNamespace(init=lambda **options: started.update(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    ids = []
    for folder in ("a/run", "b/run", "a/run"):
        writer = writers.WandbWriter(
            "project", name="run", config={"seed": 1}, directory=tmp_path / folder
        )
        ids.append(started["id"])
    writer.write(64, 1, {"loss": 2})
    writer.close()
    assert started["resume"] == "allow"
    assert ids[0] == ids[2] != ids[1]  # a resumed run continues its own curves, and only those
    assert logged == [{"samples": 64, "step": 1, "loss": 2.0}, "end"]


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_plain_progress_is_lines_at_intervals_without_control_codes(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream, clock = io.StringIO(), Clock()
    writer = ConsoleWriter(10_000, stream=stream, interval=10, clock=clock)
    for i in range(1, 26):
        writer.write(100 * i, i, {"loss": 5 - i / 10})
        clock.now += 1
    writer.write(2500, 25, {"unseen/text_to_image/R@1": 0.125})
    writer.close()
    out = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()
    assert [line.split("/")[0].split()[-1] for line in out if "ETA" in line] == [
        "100",
        "1,100",
        "2,100",
        "2,500",
    ]
    assert out[1] == " 11.0%  1,100/10,000 samples  100 samples/s  ETA 1:29  loss 3.9000"
    assert "  unseen/text_to_image/R@1  0.1250" in out


def test_speed_of_a_resumed_run_counts_from_its_start():
    clock = Clock()
    writer = ConsoleWriter(10_000, start_samples=5_000, stream=io.StringIO(), clock=clock)
    assert math.isnan(writer.samples_per_second)
    for i in range(100):
        writer.write(5_000 + 10 * i, i, {"loss": 1.0})
        clock.now += 0.5 if i < 50 else 1.0  # it slows down: the window forgets the fast part
    assert writer.samples_per_second == pytest.approx(10.0, rel=0.05)


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream, clock = Terminal(), Clock()
    writer = ConsoleWriter(1000, stream=stream, clock=clock)
    for i in (1, 2):
        writer.write(100 * i, i, {"loss": 2.5})
        clock.now += 1
    writer.write(200, 2, {"name[/]": 0.5})
    writer.close()
    out = stream.getvalue()
    assert "\x1b[" in out
    assert "200/1,000 samples" in out
    assert "name[/]" in out
    assert "━" in out
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    writer = ConsoleWriter(1000, stream=stream, clock=clock)
    writer.write(100, 1, {"loss": 2.5})
    writer.close()
    assert "\x1b" not in stream.getvalue()


def test_format_seconds():
    assert [format_seconds(s) for s in (5, 65, 3599.6, 7325, math.nan, math.inf)] == [
        "0:05",
        "1:05",
        "1:00:00",
        "2:02:05",
        "-:--",
        "-:--",
    ]
