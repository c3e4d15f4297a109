"""Holds VESL's labels of composed scenes against the truth (experiments/cloc/vesl/README.md).

python -m experiments.cloc.score_vesl regions [more folders ...] [--why]

prints a row of Markdown for each output folder of VESL's job; with --why what was lost and what is false.
"""

import argparse
import json
from pathlib import Path

from clipjax.data.sources import make_source
from clipjax.errors import UserError
from experiments.cloc.vesl.meaning import LEVELS
from experiments.cloc.vesl.score import NOTHING, Score, score

HEAD = "| labels | regions a record | by name: precision | recall | by head: precision | recall |"


def score_folder(folder: Path) -> dict[str, Score]:
    """Level -> counts of all records.

    Raises:
      UserError: no labels of scenes.
    """
    source = make_source(
        {"kind": "array_record", "files": str(folder / "*.arrayrecord")}, str(folder)
    )
    totals = dict.fromkeys(LEVELS, NOTHING)
    for index in range(len(source)):
        record = source[index]
        missing = {"names", "source_boxes", "phrases"} - set(record)
        if missing:
            raise UserError(
                f"{folder} holds no labels of composed scenes: there is no field {min(missing)!r}."
            )
        for level in LEVELS:
            totals[level] += score(record, level)
    return totals


def row(folder: Path, totals: dict[str, Score]) -> str:
    """A row of the table."""
    summary = json.loads((folder / "summary.json").read_text())
    regions = summary["counts"].get("regions", 0) / max(1, summary["written"])
    shares = [f"{100 * share:.1f} %" for s in totals.values() for share in (s.precision, s.recall)]
    settings = {k: v for k, v in summary["plan"]["detector"].items() if k != "kind"}
    name = ", ".join(f"{k}={v}" for k, v in settings.items()) or "no noise"
    return f"| {name} | {regions:.2f} | {' | '.join(shares)} |"


def main(arguments: list[str] | None = None) -> None:
    """Exits with status 2 on a user's mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--why", action="store_true", help="what was lost and what is false")
    args = parser.parse_args(arguments)
    print(HEAD + "\n" + "|---" * HEAD.count(" | ") + "|---|")
    for folder in args.folders:
        try:
            totals = score_folder(folder)
            print(row(folder, totals), flush=True)
        except (UserError, OSError) as error:
            parser.exit(2, f"{error}\n")
        for level, total in totals.items() if args.why else ():
            print(f"  by {level}: {total.objects:,} objects, {total.pairs:,} pairs")
            print(f"    lost: {dict(total.lost.most_common())}")
            print(f"    false: {dict(total.false.most_common())}")


if __name__ == "__main__":
    main()
