"""Does the steps of a recipe: each in a process of its own, several at a time, never one that is done.

A step's process is a command of clipjax, which its log says in the first line, so it can be repeated by hand. With
`jobs` above 1 the cores of this machine are shared out: on two cores `jobs=2` gives each step one core.

A step's log is locked while its process lives, by that process too. So a recipe that is started while steps of an
earlier start are still running (the recipe alone was killed) waits for them, and never runs a second process in a
step's folder.
"""

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from clipjax.errors import UserError
from clipjax.job.signals import stop_signals
from clipjax.log.console import format_seconds
from clipjax.recipe import Recipe, Step, substitute, tables
from clipjax.recipe.marks import Marks, definition, override_list
from clipjax.registry import nearest

POLL = 0.1  # seconds between two looks at the processes


class _Running(NamedTuple):
    process: subprocess.Popen
    log: BinaryIO
    cores: tuple[int, ...]
    start: float
    defined: dict[str, Any]


def run(recipe: Recipe, workdir: Path, jobs: int = 1, only: Sequence[str] = ()) -> int:
    """Does what is not yet done, and prints the tables.

    Args:
      recipe: of `load_recipe`.
      workdir: its directory, made if it is not there.
      jobs: steps at a time.
      only: names of steps, or patterns such as "full-*": these, and what they need, and no others. A table then has
        what is finished.

    Returns:
      0 if all (of `only`) is done, 1 if a step has failed, 75 if only such have failed as may be tried again,
      128 + n after signal n.

    Raises:
      UserError: a config that cannot be loaded, a finished step whose definition has changed, no such step.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if jobs < 1 or (jobs > 1 and jobs > len(cores)):
        raise UserError(
            f"--jobs must be from 1 to the {len(cores) or 1} cores there are, not {jobs}."
        )
    chosen = choose(recipe, only)
    marks = Marks(recipe, workdir)
    for step in map(recipe.steps.get, chosen):
        definition(recipe, step)  # a mistake in any config shows before the first step
    for folder in ("logs", "done"):
        (workdir / folder).mkdir(parents=True, exist_ok=True)
    runner = _Runner(recipe, workdir, marks, [tuple(cores[i::jobs]) for i in range(jobs)])
    with stop_signals() as stop:
        status = runner.run(chosen, stop)
    for name in chosen:
        if recipe.steps[name].kind == "table":
            done = marks.finished([n for n, s in recipe.steps.items() if s.kind != "table"])
            print(f"\n{name}\n\n{tables.write(recipe.steps[name], workdir, done)}", flush=True)
    return status


def choose(recipe: Recipe, only: Sequence[str]) -> list[str]:
    """Names of the steps that `only` means, with those that they need, in the recipe's order; without it all.

    Raises:
      UserError: a name or pattern that is no step's.
    """
    wanted: set[str] = set() if only else set(recipe.steps)
    for pattern in only:
        found = [name for name in recipe.steps if fnmatch(name, pattern)]
        if not found:
            raise UserError(f"The recipe has no step {pattern!r}{nearest(pattern, recipe.steps)}.")
        wanted |= set(found)
    todo = list(wanted)
    while todo:
        for need in recipe.needs[todo.pop()]:
            if need not in wanted:
                wanted.add(need)
                todo.append(need)
    return [name for name in recipe.steps if name in wanted]


class _Runner:
    def __init__(
        self, recipe: Recipe, workdir: Path, marks: Marks, cores: Sequence[tuple[int, ...]]
    ):
        self._recipe, self._workdir, self._marks = recipe, workdir, marks
        self._folders = {name: str(workdir / name) for name in recipe.steps}
        self._free, self._several = list(cores), len(cores) > 1
        self._running: dict[str, _Running] = {}
        self._failed: dict[str, int] = {}
        self._waited: set[str] = set()

    def run(self, chosen: Sequence[str], stop: Any) -> int:
        """See the module's `run`."""
        waiting = [name for name in chosen if self._recipe.steps[name].kind != "table"]
        done = set(self._marks.finished(waiting))
        waiting = [name for name in waiting if name not in done]
        if done:
            print(f"{len(done)} of {len(done) + len(waiting)} steps are done already.", flush=True)
        try:
            while waiting or self._running:
                if stop.signum:
                    return self._stop(stop.signum)
                for name in list(waiting):
                    needs = self._recipe.needs[name]
                    lacking = [n for n in needs if n in self._failed]
                    if lacking:
                        self._failed[name] = self._failed[lacking[0]]
                        waiting.remove(name)
                        print(f"{name} is left out: it needs {lacking[0]}.", flush=True)
                    elif self._free and set(needs) <= done and self._start(name, done):
                        waiting.remove(name)
                done |= self._ended()
                time.sleep(POLL)
        except BaseException:
            self._stop(15)
            raise
        statuses = set(self._failed.values())
        return 0 if not statuses else 75 if statuses == {75} else 1

    def _start(self, name: str, done: set[str]) -> bool:
        """Starts a step, or finds that another start has done it; False: another start is still doing it."""
        log = open(self._workdir / "logs" / f"{name}.log", "ab")  # noqa: SIM115 (closed when the process has ended)
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            log.close()
            if name not in self._waited:
                print(f"{name} is still running from an earlier start; waiting for it.", flush=True)
            self._waited.add(name)
            return False
        if self._marks.finished([name]):
            log.close()
            done.add(name)
            return True
        step = self._recipe.steps[name]
        defined = definition(self._recipe, step)
        folder = self._workdir / name
        if step.kind != "train":
            shutil.rmtree(folder, ignore_errors=True)  # what is left of an interrupted one
        if step.kind not in ("train", "stage"):
            folder.mkdir(parents=True)
        command = self.command(step)
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        cores, environment = self._free.pop(0), dict(os.environ)
        if self._several and len(cores) == 1:
            # XLA's pool of threads would have a thread for every core of the machine.
            one = "--xla_cpu_multi_thread_eigen=false"
            environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {one}".strip()
        print(f"{name} ...", flush=True)
        # In a session of its own, so that a Ctrl-C reaches it once, through `_stop`.
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        if self._several:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, cores)  # before it has made any thread
        self._running[name] = _Running(process, log, cores, time.monotonic(), defined)
        return True

    def _ended(self) -> set[str]:
        """Takes note of processes that have ended; the steps that are done."""
        done = set()
        for name, one in list(self._running.items()):
            status = one.process.poll()
            if status is None:
                continue
            if status == 0:
                self._marks.write(name, one.defined)
                done.add(name)
                took = format_seconds(time.monotonic() - one.start)
                print(f"{name} is done, after {took}.", flush=True)
            else:
                self._failed[name] = status
                file = self._workdir / "logs" / f"{name}.log"
                print(f"{name} failed with status {status}; see {file}: {_last(file)}", flush=True)
            self._let_go(name)
        return done

    def _let_go(self, name: str) -> None:
        one = self._running.pop(name)
        one.log.close()
        self._free.append(one.cores)

    def _stop(self, signum: int) -> int:
        """Asks all processes to save and stop, and waits for them."""
        for one in self._running.values():
            one.process.terminate()
        for name, one in list(self._running.items()):
            one.process.wait()
            print(f"{name} was stopped; the next start goes on.", flush=True)
            self._let_go(name)
        return 128 + signum

    def command(self, step: Step) -> list[str]:
        """The command line of a step's process."""
        settings, target = substitute(step.settings, self._folders), self._folders[step.name]
        clipjax = [sys.executable, "-m", "clipjax.cli"]
        if step.kind == "call":
            given = (settings["function"], target, str(self._recipe.root))
            module = "clipjax.recipe.calling"
            return [sys.executable, "-m", module, *given, json.dumps(settings["settings"])]
        if step.kind == "stage":
            stage = [f"--stage={settings['stage']}", f"--source={settings['source']}"]
            own = [f"--stage.{k}={v!r}" for k, v in settings["settings"].items()]
            root = f"--import-root={self._recipe.root}"
            return [*clipjax, "stage", *stage, f"--target={target}", root, *own]
        if step.kind == "embed":
            given = [f"--{k}={settings[k]}" for k in ("images", "texts") if settings[k] is not None]
            output = f"--output={target}/embeddings.npz"
            return [*clipjax, "embed", f"--checkpoint={settings['checkpoint']}", *given, output]
        overrides = [f"--config.{o}" for o in override_list(settings["overrides"])]
        config = []
        if settings["config"] is not None:
            config = [f"--config={self._recipe.config(settings['config'])}"]
        if step.kind == "train":
            return [*clipjax, "train", *config, f"--workdir={target}", *overrides]
        suite = [] if settings["suite"] is None else [f"--suite={settings['suite']}"]
        given = [f"--checkpoint={settings['checkpoint']}", *config, *suite]
        return [*clipjax, "eval", *given, f"--output={target}/results.jsonl", *overrides]


def _last(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"
