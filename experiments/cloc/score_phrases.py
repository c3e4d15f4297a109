"""Holds taggers against each other: which noun phrases of captions they find (experiments/cloc/vesl/README.md).

python -m experiments.cloc.score_phrases --scenes='scenes/*.array_record' [--tagger=textblob] [--count=2000]

prints a row of Markdown: precision and recall of the phrases of experiments/cloc/vesl/captions.jsonl, which were
written and marked by hand; of the scenes' objects the shares that some phrase means, by name and by head, with the
places and with the mere list of names as the caption; words a second. --lost shows the names that are lost most often.
"""

import argparse
import collections
import json
import time
from pathlib import Path
from typing import Any

from clipjax import registry
from clipjax.data.commands.named import entry_of, open_source
from clipjax.errors import UserError
from experiments.cloc.vesl import taggers
from experiments.cloc.vesl.meaning import LEVELS, meaning_of
from experiments.cloc.vesl.phrases import noun_phrases

CAPTIONS = Path(__file__).parent / "vesl" / "captions.jsonl"
HEAD = (
    "| tagger | captions by hand: precision | recall | scenes, places: by name | by head | scenes, names: by name "
    "| by head | words/s |"
)


def by_hand(tagger: Any) -> tuple[float, float]:
    """Precision and recall of the phrases of the captions that were marked by hand, exact and with the determiner."""
    right = found = there = 0
    for line in CAPTIONS.read_text(encoding="utf-8").splitlines():
        marked = json.loads(line)
        phrases = collections.Counter(noun_phrases(marked["text"], tagger))
        wanted = collections.Counter(marked["phrases"])
        right += (phrases & wanted).total()
        found += phrases.total()
        there += wanted.total()
    return right / found, right / there


def in_scenes(
    tagger: Any, records: list[dict[str, Any]], which: int
) -> tuple[dict[str, float], float, collections.Counter]:
    """Level -> share of the objects that are meant by a phrase of caption `which`; words/s; names that are lost."""
    meant: collections.Counter[str] = collections.Counter()
    lost: collections.Counter[str] = collections.Counter()
    objects = words = 0
    seconds = 0.0
    for record in records:
        caption, meaning = record["text"][which], meaning_of(record)
        start = time.perf_counter()
        phrases = noun_phrases(caption, tagger)
        seconds += time.perf_counter() - start
        words += len(caption.split())
        objects += len(record["names"])
        for level in LEVELS:
            found = {i for phrase in phrases for i in meaning(phrase, level)}
            meant[level] += len(found)
            if level == "name":
                lost.update(n for i, n in enumerate(record["names"]) if i not in found)
    return {level: meant[level] / objects for level in LEVELS}, words / seconds, lost


def main(arguments: list[str] | None = None) -> None:
    """Exits with status 2 on a user's mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", required=True, help="files of tools/make_scenes.py")
    parser.add_argument("--count", type=int, default=2000, help="scenes")
    parser.add_argument("--tagger", default="textblob", help="kind or import path")
    parser.add_argument("--package", help="of the tagger spacy")
    parser.add_argument("--lost", type=int, default=0, metavar="N", help="names to show")
    args = parser.parse_args(arguments)
    try:
        settings = {"package": args.package} if args.package else {}
        maker = registry.lookup(args.tagger, taggers.KINDS, "tagger")
        tagger = registry.call(maker, settings, f"The tagger {args.tagger!r}")
        tagger.load()
        source = open_source(entry_of(args.scenes), args.scenes)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    step = max(1, len(source) // args.count)
    records = [source[i] for i in range(0, len(source), step)][: args.count]
    precision, recall = by_hand(tagger)
    places, speed, lost = in_scenes(tagger, records, 1)
    names, _, _ = in_scenes(tagger, records, 0)
    shares = (precision, recall, *places.values(), *names.values())
    print(HEAD + "\n" + "|---" * HEAD.count(" | ") + "|---|")
    cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
    print(f"| {args.tagger} | {cells} | {speed:,.0f} |")
    for name, count in lost.most_common(args.lost):
        print(f"  {count:5,} {name}")


if __name__ == "__main__":
    main()
