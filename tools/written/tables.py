"""What was compared, as tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def markdown(rows: Sequence[Row]) -> str:
    """One table of what loads and how well, and one of what each format refuses."""
    written = [row for row in rows if "refused" not in row]
    refused = [row for row in rows if "refused" in row]
    head = ("from", "to", "loaded by", "image", "text", "ids", "pixels", "")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in written]
    failed = sum(bool(row["problems"]) for row in written)
    lines += ["", f"{len(written)} written, {failed} with problems, {len(refused)} refused.", ""]
    lines += ["| from | to | refused with |", "|---|---|---|"]
    lines += [f"| {row['origin']} | {row['target']} | {row['refused']} |" for row in refused]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    texts = [row[name] for name in ("text_embedding", "texts") if name in row]
    pixels = [f"{row[k]:.0e}" for k in row if k.startswith("pixels_")]
    return [
        row["origin"],
        row["target"],
        row.get("architecture", "-"),
        _number(row.get("image_embedding")),
        _number(max(texts, default=None)),
        row.get("ids", "-"),
        ", ".join(pixels) or "-",
        "ok" if not row["problems"] else "**fails**",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
