"""The documents inside the bundled data set of drawings: README.md and LICENSES/NOTICE.txt."""

from __future__ import annotations

import collections
import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import drawings_sources as sources

_README = """\
# Drawings of {concepts} concepts in six styles

Drawings of animals, plants, food, places, vehicles, objects and activities: the Unicode emoji
without faces, people, symbols and flags. The same concepts are drawn in six styles, so that one
can be held out. The names and keywords are those of Unicode CLDR in {locales} locales.

`clipjax.data.drawings` reads this folder and `python tools/build_drawings.py` writes it; do not
edit it by hand.

## What is here

- `STYLE.webp`: contact sheets with alpha, tiles of {tile} px, {columns} in a row, WebP quality
  {quality} with lossless alpha
- `concepts.json`: the concepts in their fixed order: code point, English name, short names,
  category, subcategory, split, and per style the number of its tile (row by row) or null
- `names/LOCALE.json.gz`: one list per concept in the same order: the name, then the keywords
- `LICENSES/`: licence texts, and `NOTICE.txt` with the attributions

## Counts

{concepts} concepts: {seen} seen, {unseen} unseen. Unseen means that the SHA-256 of the code
point, as written in `concepts.json`, is divisible by 5. Train on seen concepts in train styles;
`fluent_3d` is the test style and is never trained on.

{styles}

{categories}

{languages}

Some concepts look nearly alike within a style: snowman and snowman without snow, neighbouring
clock times, banknotes, the two calendars. The name of U+1F52B is "water pistol", but openmoji,
noto_v1 and emojione draw a revolver.

## How it was made

Concepts come from `emoji.json` of emoji-datasource-google, sorted by its `sort_order`. noto and
twemoji are the 64 px PNG files of the two emoji-datasource packages; openmoji's colour SVG files
and the two Iconify sets are rasterised by resvg; fluent_3d is reduced from 256 px. Drawings are
joined on the code point, noto_v1 and emojione on the slug of the English name or of the Unicode
name, or an alias of the set. These joins name another thing and are left out:

{wrong}

CLDR names are its `tts`, keywords its `default`, from the annotations and the derived
annotations, looked up with and without U+FE0F. Made with resvg-py {resvg} and Pillow {pillow};
with these versions the files come out byte for byte (the compressed names with the same zlib,
too).

## Sources and licences

{sources}

The contact sheets are adaptations (rasterised, resized, recompressed, put on one sheet) and stay
under the licence of their source: openmoji.webp is therefore CC-BY-SA-4.0.
"""

_NOTICE = """\
Attributions for the drawings and names in this folder.
Changes made to all drawings: selected, rasterised or resized to 64 pixels, recompressed, put on
contact sheets. Changes made to the texts: selected, rearranged.

{entries}
"""


def notice() -> str:
    """Text of LICENSES/NOTICE.txt."""
    entries = [
        f"{name}.webp: {style.title}, by {style.authors} ({style.homepage}).\n"
        f"  Licence: {style.licence}, see {style.licence_file}."
        for name, style in sources.STYLES.items()
    ]
    entries.append(
        "concepts.json: emoji-data, by Cal Henderson (github.com/iamcal/emoji-data).\n"
        "  Licence: MIT, see MIT-emoji-data.txt."
    )
    entries.append(
        "names/*.json.gz: Unicode CLDR annotations, by Unicode, Inc. (cldr.unicode.org).\n"
        "  Licence: Unicode-3.0, see Unicode-3.0.txt."
    )
    return _NOTICE.format(entries="\n\n".join(entries))


def readme(
    rows: Sequence[Mapping[str, Any]],
    names: Mapping[str, Mapping[str, list[str]]],
    files: Mapping[str, bytes],
) -> str:
    """Text of README.md.

    Args:
      rows: the concepts of concepts.json.
      names: locale -> code point -> [name, keyword, ...].
      files: path -> content of the files made so far, for their sizes.
    """

    def counts(chosen: Iterable[Mapping[str, Any]]) -> tuple[int, int, int]:
        splits = collections.Counter(row["split"] for row in chosen)
        return splits.total(), splits["seen"], splits["unseen"]

    styles = [
        (
            name,
            style.role,
            *counts(row for row in rows if row["tiles"][name] is not None),
            len(files[f"{name}.webp"]),
        )
        for name, style in sources.STYLES.items()
    ]
    categories = [
        (category, *counts(row for row in rows if row["category"] == category))
        for category in sources.CATEGORIES
    ]
    languages = []
    for locale, language in sources.LOCALES.items():
        texts = list(names[locale].values())
        distinct = len({name for name, *_ in texts})
        keywords = f"{sum(len(text) - 1 for text in texts) / len(texts):.1f}"
        size = len(files[f"names/{locale}.json.gz"])
        languages.append((locale, language, len(texts), distinct, keywords, size))
    packages = [
        (part, f"{package.name} {package.version}", f"`{package.sha256}`", licence)
        for part, package, licence in sources.sources()
    ]
    wrong = [f"- {style} {point}: {why}" for (style, point), why in sources.WRONG_JOINS.items()]
    total, seen, unseen = counts(rows)
    return _README.format(
        concepts=total,
        seen=seen,
        unseen=unseen,
        locales=len(names),
        tile=sources.TILE,
        columns=sources.COLUMNS,
        quality=sources.QUALITY,
        styles=_table(("style", "use", "drawings", "of seen", "of unseen", "bytes"), styles),
        categories=_table(("category", "concepts", "seen", "unseen"), categories),
        languages=_table(
            ("locale", "language", "names", "distinct", "keywords per concept", "bytes"), languages
        ),
        wrong="\n".join(wrong),
        sources=_table(("part", "package", "sha256 of the tarball", "licence"), packages),
        resvg=importlib.metadata.version("resvg-py"),
        pillow=importlib.metadata.version("pillow"),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
