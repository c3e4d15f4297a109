"""The image report of a run: one HTML file that needs nothing else."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from clipjax.errors import UserError
from clipjax.log.pages.images import escaped
from clipjax.log.pages.numbers import short_number
from clipjax.log.writers import read_jsonl, read_results, replace_file

_TITLES = {
    "image_to_text": "image → text",
    "text_to_image": "text → image",
    "acc": "accuracy",
    "mean_per_class": "mean per class",
    "region_to_text": "region → text",
    "text_to_region": "text → region",
    "iou": "IoU",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "logit_scale": "logit scale",
    "samples_per_second": "samples per second",
    "mfu": "model FLOPs utilisation",
}
_SHARES = ("R@", "acc@", "mean_per_class", "mAcc", "accuracy", "iou")


class Section(Protocol):
    """Something that an evaluator's `galleries` shows at the end of a run."""

    def html(self) -> str:
        """A part of the page that needs nothing else; what comes from outside is escaped."""
        ...


def write_report(workdir: Path, galleries: Sequence[Section] = ()) -> Path:
    """Writes `report.html` into a run directory and returns its path.

    It is made from what is there of `metrics.jsonl`, `results.json` and `config.json`; what is
    missing or broken is said in the report. The file is self-contained and replaced in one step.
    """
    workdir = Path(workdir)
    warnings: list[str] = []
    lines = _read_metrics(workdir / "metrics.jsonl", warnings)
    results = _read(read_results, workdir / "results.json", {}, warnings)
    config = _read(_read_config, workdir / "config.json", None, warnings)
    body = [
        _header(workdir, lines, config, warnings),
        _results(results),
        _curves(lines),
        *(gallery.html() for gallery in galleries),
        _details("Configuration", config),
        _details(
            "Evaluation protocols",
            {k: v["protocol"] for k, v in results.items() if "protocol" in v},
        ),
    ]
    style = (Path(__file__).parents[1] / "assets" / "report.css").read_text(encoding="utf-8")
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(workdir.resolve().name)} · clipjax</title>\n<style>\n{style}</style>\n"
        f"</head>\n<body>\n<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
    )
    path = workdir / "report.html"
    replace_file(path, page)
    return path


def _read(reader, path: Path, missing: Any, warnings: list[str]) -> Any:
    try:
        return reader(path) if path.exists() else missing
    except (UserError, OSError, ValueError):
        warnings.append(f"{path.name} cannot be read.")
        return missing


def _read_config(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_metrics(path: Path, warnings: list[str]) -> list[dict[str, float]]:
    lines, bad = _read(read_jsonl, path, ([], 0), warnings)
    if bad:
        warnings.append(f"{bad} line(s) of {path.name} cannot be read and are left out.")
    odd = next((x for x in lines if "loss" in x and not math.isfinite(x["loss"])), None)
    if odd:
        warnings.append(f"The loss was {odd['loss']} at {odd['samples']:,} samples.")
    return lines


def _header(workdir: Path, lines, config: Any, warnings: list[str]) -> str:
    total, batch = _find(config, "total_samples"), _find(config, "batch_size")
    facts: dict[str, str] = {}
    state = "No metrics yet."
    if lines:
        seen, last = lines[-1]["samples"], _last(lines)
        state = f"<b>{seen:,}</b> samples seen"
        if isinstance(total, (int, float)) and total > 0:
            # The last batch may not fit any more into the total.
            done = seen + (batch if isinstance(batch, int) else 1) > total
            word = "Finished" if done else f"{100 * seen / total:.1f}% of the run"
            state = f"<b>{word}</b> · {seen:,} of {int(total):,} samples"
        facts["steps"] = f"{lines[-1]['step']:,}"
        facts |= {_title(k): _number(k, last[k]) for k in ("loss", "logit_scale") if k in last}
        speeds = sorted(x["samples_per_second"] for x in lines if "samples_per_second" in x)
        if speeds:
            facts["samples/s (median)"] = short_number(speeds[len(speeds) // 2])
    if isinstance(batch, int):
        facts["batch size"] = f"{batch:,}"
    items = "".join(
        f"<div><dt>{escaped(k)}</dt><dd>{escaped(v)}</dd></div>" for k, v in facts.items()
    )
    return (
        f"<header><h1>{escaped(workdir.resolve().name)}</h1>\n<p class=state>{state}</p>\n"
        + (f"<dl class=facts>{items}</dl>\n" if facts else "")
        + "".join(f"<p class=warn>{escaped(warning)}</p>\n" for warning in warnings)
        + "</header>\n"
    )


def _curves(lines: list[dict[str, float]]) -> str:
    panels: dict[str, dict[str, tuple[list, list]]] = {}
    for line in lines:
        for key, value in line.items():
            if key in ("samples", "step"):
                continue
            prefix, _, name = key.rpartition("/")
            xs, ys = panels.setdefault(prefix or key, {}).setdefault(name, ([], []))
            xs.append(line["samples"])
            ys.append(value)
    if not panels:
        return ""
    # Matplotlib takes most of a second to load, for which the start of a run need not wait.
    from clipjax.log.pages.figures import curve_svg

    shares = {p: all(_is_share(f"{p}/{n}") for n in series) for p, series in panels.items()}
    # The loss first, then what evaluators measured, then the rest, each in the order of arrival.
    order = sorted(panels, key=lambda p: (p != "loss", not shares[p]))
    figures = []
    for panel in order:
        series, title = panels[panel], _title(panel)
        labelled = {
            f"{_title(name)} {_number(f'{panel}/{name}', xy[1][-1])}": xy
            for name, xy in series.items()
        }
        name, (_, ys) = next(iter(series.items()))
        last = (
            _number(f"{panel}/{name}", ys[-1]) if len(series) == 1 else ""
        )  # several stand at the curves
        figures.append(
            f"<figure><figcaption><h3>{escaped(title)}</h3><span class=last>{escaped(last)}</span>"
            f"</figcaption>{curve_svg(title, labelled, percent=shares[panel])}</figure>\n"
        )
    note = "Numbers are the last values. Long curves show the mean and the range of bins."
    return (
        f"<h2>Curves</h2>\n<p class=note>{note}</p>\n<div class=curves>\n{''.join(figures)}</div>\n"
    )


def _results(results: Mapping[str, Mapping[str, Any]]) -> str:
    if not results:
        return "<h2>Results</h2>\n<p class=note>No evaluator has run yet.</p>\n"
    tables: dict[tuple[str | None, ...], list[str]] = {}
    for name, entry in results.items():
        # Columns of the widest kind serve the narrower ones: acc@5 is absent under 5 classes.
        groups = dict.fromkeys(key.rpartition("/")[0] for key in entry["metrics"])
        kind = (entry.get("protocol", {}).get("kind"), *groups)
        tables.setdefault(kind, []).append(name)
    parts = []
    for names in tables.values():
        columns = list(dict.fromkeys(key for name in names for key in results[name]["metrics"]))
        parts.append(_table(columns, {name: results[name] for name in names}))
    return (
        "<h2>Results</h2>\n<p class=note>The last value of every evaluator; small figures are what "
        f"chance gives.</p>\n{''.join(parts)}"
    )


def _table(columns: list[str], rows: Mapping[str, Mapping[str, Any]]) -> str:
    groups: dict[str, int] = {}
    for column in columns:
        prefix = column.rpartition("/")[0]
        groups[prefix] = groups.get(prefix, 0) + 1
    head = ""
    if any(groups):
        cells = "".join(
            f"<th class=group colspan={n}>{escaped(_title(g))}</th>" for g, n in groups.items()
        )
        head = f"<tr><th></th>{cells}<th></th><th></th></tr>"
    names = "".join(f"<th>{escaped(_title(c.rpartition('/')[2]))}</th>" for c in columns)
    body = ""
    for name, entry in rows.items():
        protocol = entry.get("protocol", {})
        chance, cells = protocol.get("chance", {}), ""
        for column in columns:
            value = entry["metrics"].get(column)
            below = (
                f"<small>{escaped(_number(column, chance[column]))}</small>"
                if column in chance
                else ""
            )
            cells += f"<td>{'–' if value is None else escaped(_number(column, value)) + below}</td>"
        size = [
            f"{protocol[k]:,} {k}"
            for k in ("images", "regions", "texts", "pairs", "classes")
            if k in protocol
        ]
        body += (
            f"<tr><td>{escaped(name)}</td>{cells}<td>{entry['samples']:,}</td>"
            f"<td class=what>{escaped(' × '.join(size))}</td></tr>\n"
        )
    return (
        f"<div class=scroll><table><thead>{head}<tr><th>evaluator</th>{names}"
        "<th>at samples</th><th class=what></th></tr></thead>\n"
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _details(title: str, value: Any) -> str:
    if not value:
        return ""
    shown = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return f"<details><summary>{escaped(title)}</summary><pre>{escaped(shown)}</pre></details>\n"


def _find(config: Any, key: str) -> Any:
    """Looks in the config and one level down (where a file keeps it beside versions)."""
    places: Iterable[Any] = [config, *(config.values() if isinstance(config, dict) else ())]
    return next((p[key] for p in places if isinstance(p, dict) and key in p), None)


def _last(lines: list[dict[str, float]]) -> dict[str, float]:
    return {key: value for line in lines for key, value in line.items()}


def _is_share(key: str) -> bool:
    """Whether a metric, or the group that it is a part of (accuracy/size), is in [0, 1]."""
    return any(part.startswith(_SHARES) for part in key.split("/")[-2:])


def _number(key: str, value: float) -> str:
    if _is_share(key) and 0 <= value <= 1:
        return f"{100 * value:.1f}%"
    return f"{value:.4g}" if abs(value) < 1e4 else short_number(value)


def _title(key: str) -> str:
    return " / ".join(_TITLES.get(part, part) for part in key.split("/"))
