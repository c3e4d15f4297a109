"""A run's directory: which config it belongs to, and the records that are written once."""

import importlib.metadata
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from clipjax.config import flatten, from_json, in_samples, to_json
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.imports import used_modules
from clipjax.log.writers import replace_file
from clipjax.migrate import migrate

# Fields that may differ when a run goes on: they change what is reported or where it runs, not what is learnt.
FREE = (
    "log.",
    "evals",
    "checkpoint.",
    "run.",
    "mesh.",
    "grad_cache",
    "model.attention",
    "data.threads",
    "data.workers",
    "data.prefetch",
    "data.record_ids",
    "data.max_bad_fraction",
)


def resolve(config: ConfigDict, epoch: int) -> ConfigDict:
    """A copy with every duration in samples and the run's end on a whole batch.

    Args:
      config: as loaded.
      epoch: records of all sources together.

    Raises:
      UserError: a duration that cannot be understood, or a run without samples.
    """
    config = ConfigDict(config.to_dict(), type_safe=False)
    size = config.batch_size
    if size < 1:
        raise UserError(f"config.batch_size must be at least 1, not {size}.")
    if not 0 <= config.seed < 2**31:
        raise UserError(f"config.seed must be from 0 to 2**31 - 1, not {config.seed}.")
    if config.checkpoint.keep is not None and config.checkpoint.keep < 1:
        raise UserError(
            f"config.checkpoint.keep must be at least 1, or None for all, not {config.checkpoint.keep}."
        )
    if config.checkpoint.frozen_once and config.refreshes:
        raise UserError(
            "config.checkpoint.frozen_once does not go with config.refreshes, which change frozen parameters; leave "
            "one of them out."
        )
    if config.data.workers < 0:
        raise UserError(f"config.data.workers must be at least 0, not {config.data.workers}.")
    for name, seconds in config.run.items():
        least = 0 if name in ("step_timeout", "pause_timeout") else 1
        if seconds < least:
            raise UserError(f"config.run.{name} must be at least {least} (seconds), not {seconds}.")
    total = in_samples(config.total_samples, "total_samples", size, epoch, None)
    if not total:
        raise UserError(
            "config.total_samples is 0; say how long to train, such as 100_000 or '20 epochs'."
        )
    total = -(-total // size) * size
    config.total_samples = total

    def convert(section: Any, name: str, path: str) -> None:
        if name in section:
            section[name] = in_samples(section[name], path + name, size, epoch, total)

    convert(config.optim, "warmup", "optim.")
    convert(config.checkpoint, "every", "checkpoint.")
    convert(config.checkpoint, "keep_every", "checkpoint.")
    convert(config.log, "every", "log.")
    for section in ("evals", "refreshes"):
        for name, entry in config[section].items():
            convert(entry, "every", f"{section}.{name}.")
    return config


def claim(workdir: Path, config: ConfigDict) -> None:
    """Writes `config.json`, `versions.json`, `modules.json` into a new workdir, or checks that it is this run's.

    Raises:
      UserError: the workdir belongs to another config (the differences are named), or cannot be written.
    """
    file = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if file.exists():
            _check_same(file, config)
        elif (workdir / "checkpoints").exists():
            raise UserError(
                f"{str(workdir)!r} holds checkpoints but no config.json; choose another --workdir."
            )
        replace_file(file, to_json(config))
        replace_file(workdir / "versions.json", json.dumps(versions(), indent=2) + "\n")
        replace_file(workdir / "modules.json", json.dumps(used_modules(config), indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"The workdir {str(workdir)!r} cannot be written: {error.strerror}."
        ) from error


def check_shared(workdir: Path, config: ConfigDict, patience: float = 60.0) -> None:
    """Makes sure that this process sees the `config.json` that process 0 has just written with `claim`.

    Args:
      workdir: the run's directory.
      config: the run's config.
      patience: seconds; a network file system may show a new file late.

    Raises:
      UserError: it does not, so the processes do not share their workdir.
    """
    file, end = workdir / "config.json", time.monotonic() + patience
    while not file.exists() or file.read_text() != to_json(config):
        if time.monotonic() > end:
            raise UserError(
                f"This process does not see what process 0 has written to {str(file)!r}; the workdir must lie on a "
                "file system that all processes of a job share."
            )
        time.sleep(0.2)


def _check_same(file: Path, config: ConfigDict) -> None:
    try:
        old = flatten(from_json(to_json(migrate(from_json(file.read_text()).to_dict()))))
    except ValueError as error:
        raise UserError(
            f"{str(file)!r} is not a config that clipjax wrote; choose another --workdir."
        ) from error
    new = flatten(from_json(to_json(config)))
    # A field that an earlier version of clipjax did not have had what is now its default.
    default = flatten(from_json(to_json(base_config())))
    old |= {key: default[key] for key in new if key not in old and key in default}
    ends_anywhere = config.optim.schedule in ("constant", "rsqrt")
    free = (*FREE, "total_samples") if ends_anywhere else FREE
    differing = [
        f"{key} (there {old.get(key)!r}, now {new.get(key)!r})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(free)
    ]
    if differing:
        raise UserError(
            f"The workdir {str(file.parent)!r} belongs to another config; it differs in {'; '.join(differing)}. "
            "Choose another --workdir, or the old settings to go on with that run."
        )


def versions() -> dict[str, str | None]:
    """Versions of what computes, and the git commit of the code, None where it is not a checkout."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in (
        "clipjax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "numpy",
        "pillow",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["git_commit"] = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain")
    found["git_state"] = None if changed is None else "changed" if changed else "clean"
    return found


def _git(*args: str) -> str | None:
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
