"""Mean and spread of the held-out results of several runs of one config on the drawings, as a Markdown row.

python tools/summarise_runs.py runs/quickstart_seed*
"""

import argparse
import statistics
from pathlib import Path

from clipjax.log.writers import read_results

COLUMNS = [
    (evaluator, f"{way}/{metric}")
    for evaluator in ("seen", "unseen")
    for way in ("image_to_text", "text_to_image")
    for metric in ("R@1", "R@5")
] + [("category", "mean_per_class")]


def cell(values: list[float]) -> str:
    """Percent: one value, or mean ± sample standard deviation."""
    values = [100 * v for v in values]
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def main() -> None:
    """Prints the header and one row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", type=Path)
    args = parser.parse_args()
    results = [read_results(workdir / "results.json") for workdir in args.workdirs]
    print("| runs | " + " | ".join(f"{e} {m}" for e, m in COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    cells = [cell([run[e]["metrics"][m] for run in results]) for e, m in COLUMNS]
    print(f"| {len(results)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
