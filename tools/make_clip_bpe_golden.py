"""Records what open_clip's `SimpleTokenizer` makes of a few thousand strings, for the tests.

    python tools/make_clip_bpe_golden.py                  # tests/data/golden/clip_bpe.json.gz
    python tools/make_clip_bpe_golden.py --compare=50000  # random strings, ours beside it; no file
    python tools/make_clip_bpe_golden.py --texts=FILE     # the same for the lines of a file

Needs the `reference` extra (open-clip-torch 3.3.0 on torch). Golden strings hold characters of
Unicode 14 only, so that every supported Python lower-cases and normalises them alike; hence the
file is written with Python 3.11.
"""

import argparse
import gzip
import importlib
import importlib.metadata
import itertools
import json
import pathlib
import random
import sys
import unicodedata
from collections.abc import Iterable

from clip_bpe_strings import EMOJI, NASTY, PHRASES, Strings

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "tests/data/golden/clip_bpe.json.gz"
CLEANINGS = ("lower", "whitespace", "canonicalize")
RANDOM_STRINGS = 2_600
ROW_LENGTHS = (77, 16, 2)


def import_open_clip() -> None:
    """Makes open_clip importable, also where torchvision was built for another torch."""
    import torch

    # Such a torchvision fails on import unless two operators are declared beforehand.
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("open_clip")


def reference() -> dict:
    """open_clip's tokenizer for each cleaning."""
    from open_clip.tokenizer import SimpleTokenizer

    return {clean: SimpleTokenizer(clean=clean) for clean in CLEANINGS}


def captions() -> list[str]:
    """Some English captions: ImageNet's class names in open_clip's templates."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    draw = random.Random(0)
    return [draw.choice(OPENAI_IMAGENET_TEMPLATES)(name) for name in IMAGENET_CLASSNAMES]


def write(path: pathlib.Path) -> None:
    """Writes the golden file."""
    if unicodedata.unidata_version != "14.0.0":
        raise SystemExit("write the golden with Python 3.11: newer ones know more characters")
    tokenizers = reference()
    strings = itertools.islice(Strings(0, captions()), RANDOM_STRINGS)
    texts = list(dict.fromkeys([*NASTY, *EMOJI, *PHRASES, *strings]))
    ids = {clean: [tokenizers[clean].encode(text) for text in texts] for clean in CLEANINGS}
    for clean in CLEANINGS[1:]:  # null where the ids are those of "lower"
        pairs = zip(ids[clean], ids["lower"], strict=True)
        ids[clean] = [None if other == lower else other for other, lower in pairs]
    rows = {
        str(length): tokenizers["lower"](NASTY, context_length=length).tolist()
        for length in ROW_LENGTHS
    }
    packages = ("open_clip_torch", "ftfy", "regex")
    golden = {
        "about": "ids of SimpleTokenizer(clean).encode(text), without start and end of text; "
        "null: as for lower; rows: SimpleTokenizer()(texts[:len(rows)], length)",
        "command": "python tools/make_clip_bpe_golden.py",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "texts": texts,
        "ids": ids,
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # ASCII: lone surrogates are written as escapes.
    packed = json.dumps(golden, separators=(",", ":")).encode("ascii")
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(packed)
    print(f"{path}: {len(texts):,} texts, {path.stat().st_size:,} bytes")


def compare(texts: Iterable[str]) -> int:
    """Prints where clipjax differs; returns in how many texts."""
    from clipjax.data.tokenizers.clip_bpe import ClipBPE

    theirs = reference()
    ours = {clean: ClipBPE(clean=clean) for clean in CLEANINGS}
    checked = different = 0
    for text in texts:
        checked += 1
        same = all(
            ours[clean].encode(text)[1:-1] == theirs[clean].encode(text)
            and ours[clean](text).tolist() == theirs[clean](text).tolist()
            for clean in CLEANINGS
        )
        if not same:
            different += 1
            print(f"differs: {text!r}")
    print(f"{checked:,} texts under {len(CLEANINGS)} cleanings: {different} differ")
    return different


def main() -> None:
    """Writes the golden, or compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=GOLDEN)
    parser.add_argument("--compare", type=int, metavar="N", help="compare N random strings")
    parser.add_argument("--seed", type=int, default=1, help="of the strings to compare")
    parser.add_argument("--texts", type=pathlib.Path, help="compare the lines of this file")
    args = parser.parse_args()
    import_open_clip()
    if args.texts:
        sys.exit(compare(args.texts.read_text(encoding="utf-8").split("\n")) > 0)
    elif args.compare:
        strings = iter(Strings(args.seed, captions()))
        sys.exit(compare(next(strings) for _ in range(args.compare)) > 0)
    else:
        write(args.output)


if __name__ == "__main__":
    main()
