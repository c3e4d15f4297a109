"""Where metrics go: JSON lines, TensorBoard, Weights & Biases, and `results.json`.

Every writer has `write(samples, step, metrics)` and `close()`. Metrics are plain numbers under
plain keys; the x-axis is samples seen everywhere. In a run of several processes only the first one
writes.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from clipjax.errors import UserError

_RESERVED = ("samples", "step")


class Writer(Protocol):
    """A place for metrics."""

    def write(self, samples: int, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of one moment."""
        ...

    def close(self) -> None:
        """Finishes; nothing may be written afterwards."""
        ...


class MultiWriter:
    """Writes to several writers; closes all of them even if one fails to."""

    def __init__(self, writers: Iterable[Writer]):
        self._writers = list(writers)

    def write(self, samples: int, step: int, metrics: Mapping[str, float]) -> None:
        """Writes to each, in order."""
        for writer in self._writers:
            writer.write(samples, step, metrics)

    def close(self) -> None:
        """Closes each; raises the first error after all were tried."""
        errors = []
        for writer in self._writers:
            try:
                writer.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


class JsonlWriter:
    """Appends one JSON object a line: `{"samples": ..., "step": ..., key: number, ...}`.

    A line is handed to the system in one write, so a kill tears at most the last line; opening
    repairs it. NaN and infinities, which JSON lacks, are the strings "NaN", "Infinity" and
    "-Infinity" (`read_jsonl` turns them back).

    Args:
        path: the file; made with its folder if missing.
        resume_samples: None appends to what is there. A number keeps only the lines with at most
            that many samples, so that a run resumed from there does not write a moment twice. The
            file is replaced in one step: a kill leaves either the old or the new one.
    """

    def __init__(self, path: str | os.PathLike, *, resume_samples: int | None = None):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _repair(path, resume_samples)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)

    def write(self, samples: int, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line."""
        clash = [key for key in metrics if key in _RESERVED]
        if clash:
            raise ValueError(f"a metric may not be called {clash[0]!r}")
        line = {"samples": int(samples), "step": int(step)}
        line |= {key: _to_json(value) for key, value in metrics.items()}
        self._file.write(json.dumps(line, allow_nan=False).encode("utf-8") + b"\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_jsonl(path: str | os.PathLike) -> tuple[list[dict[str, float]], int]:
    """Reads what `JsonlWriter` wrote, also while it is being written.

    Returns:
        the lines as dicts (numbers only), and how many lines could not be read. A torn last line is
        not counted: it was never finished.
    """
    lines, bad = [], 0
    with open(path, "rb") as file:
        for raw in file:
            parsed = _parse(raw)
            if parsed is not None:
                lines.append(parsed)
            elif raw.endswith(b"\n"):
                bad += 1
    return lines, bad


class TensorBoardWriter:
    """Writes TensorBoard scalars, with samples as the step.

    Args:
        directory: folder of the event files.
        resume_samples: as for `JsonlWriter`: TensorBoard then hides older events beyond that count.
    """

    def __init__(self, directory: str | os.PathLike, *, resume_samples: int | None = None):
        from tensorboardX import SummaryWriter

        purge = None if resume_samples is None else resume_samples + 1
        self._writer = SummaryWriter(str(directory), purge_step=purge)

    def write(self, samples: int, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one scalar for each metric."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, float(value), global_step=samples)

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()


class WandbWriter:
    """Writes to Weights & Biases.

    Args:
        project: project's name.
        name: run's name. Its id has the directory in it too, so that a resumed run, and no other of that name,
            continues its own curves.
        config: the resolved config, shown beside the curves.
        directory: where wandb keeps its files.

    Raises:
        UserError: wandb is not installed.
    """

    def __init__(
        self,
        project: str,
        *,
        name: str,
        config: Mapping[str, Any] | None = None,
        directory: str | os.PathLike | None = None,
    ):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "Weights & Biases was asked for but wandb is not installed: "
                "pip install 'clipjax[wandb]', or turn it off in the config."
            ) from error
        # The same directory is the same run; two directories of one name are not.
        place = hashlib.sha256(str(Path(directory or name).absolute()).encode()).hexdigest()
        self._run = wandb.init(
            project=project,
            name=name,
            id=f"{name}-{place[:8]}",
            resume="allow",
            config=dict(config or {}),
            dir=None if directory is None else str(directory),
        )
        self._run.define_metric("samples")
        self._run.define_metric("*", step_metric="samples")

    def write(self, samples: int, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics with samples and step as columns of their own."""
        # wandb's own step must only grow, which a resumed run cannot promise; `samples` is the
        # axis.
        values = {key: float(value) for key, value in metrics.items()}
        self._run.log({"samples": samples, "step": step, **values})

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


def write_results(path: str | os.PathLike, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `results.json` in one step: the last value of every evaluator.

    Args:
        path: the file.
        results: by evaluator: `{"samples": int, "metrics": {key: float}, "protocol": {...}}`
            (`protocol` may be missing).
    """
    plain = {
        name: {
            "samples": int(entry["samples"]),
            "metrics": {key: _to_json(value) for key, value in entry["metrics"].items()},
            **({"protocol": dict(entry["protocol"])} if entry.get("protocol") else {}),
        }
        for name, entry in results.items()
    }
    replace_file(path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_results(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Reads `results.json`; an empty dict if there is none.

    Raises:
        UserError: the file is not what `write_results` writes.
    """
    path = Path(path)
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        for entry in results.values():
            entry["samples"] = int(entry["samples"])
            entry["metrics"] = {key: float(value) for key, value in entry["metrics"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a results file; move it away to make a new one.") from error
    return results


def replace_file(path: str | os.PathLike, content: str | Sequence[bytes]) -> None:
    """Writes a file in one step: whoever opens it, whenever, sees the old or the new one whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.writelines([content.encode("utf-8")] if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _repair(path: Path, resume_samples: int | None) -> None:
    kept, changed = [], False
    raw_lines = path.read_bytes().splitlines(keepends=True)
    for number, raw in enumerate(raw_lines, start=1):
        line = _parse(raw)
        if line is None:
            if number < len(raw_lines):
                raise UserError(
                    f"Line {number} of {path} is not a metrics line; move the file away."
                )
            changed = True  # torn by a kill
        elif resume_samples is not None and line["samples"] > resume_samples:
            changed = True
        else:
            whole = raw if raw.endswith(b"\n") else raw + b"\n"
            changed |= whole is not raw
            kept.append(whole)
    if changed:
        replace_file(path, kept)


def _parse(raw: bytes) -> dict[str, float] | None:
    try:
        line = json.loads(raw)
        numbers = {key: float(value) for key, value in line.items()}
        return numbers | {"samples": int(line["samples"]), "step": int(line["step"])}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _to_json(value: Any) -> float | str:
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
