"""Build the bundled data set of drawings (clipjax/assets/drawings) from npm packages.

    pip install "clipjax[build]"        # and npm on the PATH
    python tools/build_drawings.py [--output=DIR] [--downloads=DIR]

Fetches about 175 MB, takes about a minute, and writes the same bytes every time (given the versions
that the data set's README names). Sources and licences: drawings_sources.py.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import drawings_readme as documents
import drawings_sources as sources
import resvg_py
from PIL import Image

TILE = sources.TILE
OUTPUT = pathlib.Path(__file__).resolve().parents[1] / "clipjax" / "assets" / "drawings"
PLACEHOLDER = re.compile(r"↑|^E\d+(\.\d+)?\W")  # inheritance marks and untranslated CLDR codes

Images = dict[str, Image.Image]  # code point -> RGBA [TILE, TILE]


def fetch(package: sources.Package, folder: pathlib.Path) -> pathlib.Path:
    """Tarball of a package in `folder`, downloaded if it is not there; its sha256 is checked."""
    path = folder / package.tarball
    if not path.exists():
        spec = f"{package.name}@{package.version}"
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), spec]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        sys.exit(f"{path} has sha256 {digest}, expected {package.sha256}; delete it and try again.")
    return path


def read(path: pathlib.Path, pattern: str) -> dict[str, bytes]:
    """Files of a tarball whose name inside the package matches the whole `pattern`, sorted."""
    files = {}
    with tarfile.open(path) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            if member.isfile() and re.fullmatch(pattern, name):
                files[name] = tar.extractfile(member).read()
    return dict(sorted(files.items()))


def without_fe0f(code_point: str) -> str:
    """The code point sequence less its variation selectors."""
    return "-".join(part for part in code_point.split("-") if part != "FE0F")


def is_unseen(code_point: str) -> bool:
    """The split rule: a fifth of the concepts, for ever the same whatever else changes."""
    return int(hashlib.sha256(code_point.encode()).hexdigest(), 16) % 5 == 0


def slug(name: str) -> str:
    """`Twelve O’Clock` -> `twelve-oclock`, as icon sets name their files."""
    text = unicodedata.normalize("NFKD", name.lower().replace("’", "").replace("'", ""))
    text = "".join(char for char in text if not unicodedata.combining(char))
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def to_tile(data: bytes) -> Image.Image:
    """Decode an image to RGBA [TILE, TILE], centred; Pillow resizes with premultiplied alpha."""
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    side = max(image.size)
    if image.size != (side, side):  # a few of fluent_3d are a little higher than wide
        square = Image.new("RGBA", (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    return image.resize((TILE, TILE), Image.Resampling.LANCZOS) if side != TILE else image


def render(svg: str) -> Image.Image:
    """Rasterise an SVG text to RGBA [TILE, TILE]."""
    return to_tile(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=TILE, height=TILE)))


def join_code_points(
    concepts: Sequence[Mapping[str, Any]], files: Mapping[str, bytes], decode: Callable
) -> Images:
    """Images whose file stem is the concept's code point, with or without U+FE0F."""
    stems = {pathlib.PurePath(name).stem.upper(): data for name, data in files.items()}
    images = {}
    for concept in concepts:
        point = concept["unified"]
        data = stems.get(point, stems.get(without_fe0f(point)))
        if data is not None:
            images[point] = decode(data)
    return images


def join_slugs(
    style: str, concepts: Sequence[Mapping[str, Any]], english: Mapping[str, list[str]], data: bytes
) -> Images:
    """Images of an Iconify set, joined on the slug of the CLDR name or of the Unicode name."""
    icons = json.loads(data)
    parents = {alias: entry["parent"] for alias, entry in icons.get("aliases", {}).items()}
    images, owner = {}, {}
    for concept in concepts:
        point = concept["unified"]
        if (style, point) in sources.WRONG_JOINS:
            continue
        slugs = [slug(english[point][0]), slug(concept["name"])]
        found = [parents.get(s, s) for s in slugs if parents.get(s, s) in icons["icons"]]
        if not found:
            continue
        if found[0] in owner:
            raise ValueError(f"{style}: {point} and {owner[found[0]]} both claim {found[0]!r}")
        owner[found[0]] = point
        icon = icons["icons"][found[0]]
        width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        body = icon["body"]
        images[point] = render(
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}">{body}</svg>'
        )
    return images


def read_names(
    cldr: Mapping[str, bytes], locale: str, points: Sequence[str]
) -> dict[str, list[str]]:
    """Code point -> [name, keyword, ...] in a locale; no concept may lack a name or keywords."""
    entries: dict[str, Any] = {}
    for top in ("annotations", "annotationsDerived"):
        entries |= json.loads(cldr[f"{top}/{locale}/annotations.json"])[top]["annotations"]
    names = {}
    for point in points:
        keys = [
            "".join(chr(int(part, 16)) for part in form.split("-"))
            for form in (point, without_fe0f(point))
        ]
        entry = next((entries[key] for key in keys if key in entries), None)
        if entry is None or len(entry["tts"]) != 1 or not entry["default"]:
            raise ValueError(f"CLDR has no name or no keywords for {point} in {locale}")
        names[point] = [" ".join(text.split()) for text in (*entry["tts"], *entry["default"])]
        if any(not text or PLACEHOLDER.search(text) for text in names[point]):
            raise ValueError(f"CLDR has a placeholder for {point} in {locale}: {names[point]}")
    return names


def sheet(images: Sequence[Image.Image]) -> bytes:
    """WebP contact sheet with alpha, row by row."""
    rows = -(-len(images) // sources.COLUMNS)
    canvas = Image.new("RGBA", (sources.COLUMNS * TILE, rows * TILE))
    for index, image in enumerate(images):
        canvas.paste(image, (index % sources.COLUMNS * TILE, index // sources.COLUMNS * TILE))
    buffer = io.BytesIO()
    canvas.save(buffer, "WEBP", quality=sources.QUALITY, alpha_quality=100, method=6)
    return buffer.getvalue()


def dump_lines(rows: Sequence[Any]) -> str:
    """A JSON list with one row per line, so that differences can be read."""
    rows = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    return "[\n" + ",\n".join(rows) + "\n]"


def licences(tarballs: Mapping[sources.Package, pathlib.Path]) -> dict[str, str]:
    """File name -> text: the packages' own licence where they ship one, else the standard text."""

    def own(package: sources.Package, name: str) -> str:
        return read(tarballs[package], name)[name].decode()

    def standard(spdx: str) -> str:
        return json.loads(own(sources.LICENCE_TEXTS, f"licenses/{spdx}.json"))["licenseText"]

    fluent = standard("MIT").replace("<year> <copyright holders>", "Microsoft Corporation")
    packager = "Copyright (c) 2023 LobeHub (the package fluent-emoji-3d)"
    texts = {
        "Apache-2.0.txt": standard("Apache-2.0"),
        "CC-BY-4.0.txt": standard("CC-BY-4.0"),
        "CC-BY-SA-4.0.txt": own(sources.OPENMOJI, "LICENSE.txt"),
        "MIT-fluent-emoji.txt": fluent.replace("Corporation\n", f"Corporation\n{packager}\n", 1),
        "MIT-emoji-data.txt": own(sources.GOOGLE, "LICENSE"),
        "Unicode-3.0.txt": own(sources.CLDR, "LICENSE"),
        "NOTICE.txt": documents.notice(),
    }
    return {
        name: "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"
        for name, text in texts.items()
    }


def build(tarballs: Mapping[sources.Package, pathlib.Path]) -> dict[str, bytes]:
    """Every file of the data set: path inside its folder -> content."""
    emoji = json.loads(read(tarballs[sources.GOOGLE], "emoji.json")["emoji.json"])
    concepts = [entry for entry in emoji if entry["category"] in sources.CATEGORIES]
    concepts.sort(key=lambda entry: entry["sort_order"])
    points = [concept["unified"] for concept in concepts]

    cldr = read(tarballs[sources.CLDR], r"annotations/.*\.json")
    cldr |= read(tarballs[sources.CLDR_DERIVED], r"annotationsDerived/.*\.json")
    names = {locale: read_names(cldr, locale, points) for locale in sources.LOCALES}

    def files(package: sources.Package, pattern: str) -> dict[str, bytes]:
        return read(tarballs[package], pattern)

    imgs = {
        "noto": files(sources.GOOGLE, r"img/google/64/[^/]*\.png"),
        "twemoji": files(sources.TWITTER, r"img/twitter/64/[^/]*\.png"),
        "openmoji": files(sources.OPENMOJI, r"color/svg/[^/]*\.svg"),
        "fluent_3d": files(sources.FLUENT_3D, r"assets/[^/]*\.webp"),
    }
    images = {}
    for style in sources.STYLES:
        if style in imgs:
            decode = to_tile if style != "openmoji" else lambda data: render(data.decode())
            images[style] = join_code_points(concepts, imgs[style], decode)
        else:
            data = files(sources.STYLES[style].package, "icons.json")["icons.json"]
            images[style] = join_slugs(style, concepts, names["en"], data)

    out: dict[str, bytes] = {}
    tiles = {}
    for style in sources.STYLES:
        present = [point for point in points if point in images[style]]
        tiles[style] = {point: index for index, point in enumerate(present)}
        out[f"{style}.webp"] = sheet([images[style][point] for point in present])
    rows = [
        {
            "code_point": concept["unified"],
            "name": names["en"][concept["unified"]][0],
            "short_names": concept["short_names"],
            "category": concept["category"],
            "subcategory": concept["subcategory"],
            "split": "unseen" if is_unseen(concept["unified"]) else "seen",
            "tiles": {style: tiles[style].get(concept["unified"]) for style in sources.STYLES},
        }
        for concept in concepts
    ]
    head = {
        "tile": TILE,
        "columns": sources.COLUMNS,
        "styles": {name: style.role for name, style in sources.STYLES.items()},
        "locales": sources.LOCALES,
        "categories": sources.CATEGORIES,
    }
    text = json.dumps(head, ensure_ascii=False, indent=1)[:-2]
    out["concepts.json"] = f'{text},\n "concepts": {dump_lines(rows)}\n}}\n'.encode()
    for locale, table in names.items():
        lines = dump_lines([table[point] for point in points])
        out[f"names/{locale}.json.gz"] = gzip.compress(f"{lines}\n".encode(), mtime=0)
    for name, licence in licences(tarballs).items():
        out[f"LICENSES/{name}"] = licence.encode()
    out["README.md"] = documents.readme(rows, names, out).encode()
    return out


def main() -> None:
    """Fetch, build, write; refuses an output folder that has files which it would not write."""
    parser = argparse.ArgumentParser(description="Build the bundled data set of drawings.")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    parser.add_argument("--downloads", type=pathlib.Path, help="keep the packages in this folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.downloads or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        tarballs = {package: fetch(package, folder) for package in sources.packages()}
        files = build(tarballs)
    old = {p.relative_to(args.output).as_posix() for p in args.output.rglob("*") if p.is_file()}
    if stray := sorted(old - set(files)):
        sys.exit(f"{args.output} has files that are not the data set's: {stray}; remove them.")
    for name, content in files.items():
        path = args.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    print(f"{len(files)} files, {sum(map(len, files.values()))} bytes in {args.output}")


if __name__ == "__main__":
    main()
