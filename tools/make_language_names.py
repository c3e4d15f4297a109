"""Writes names of everyday things in languages that the drawings do not have, for the tests of the tokenizers.

    npm pack cldr-annotations-full@48.2.0
    python tools/make_language_names.py cldr-annotations-full-48.2.0.tgz     # tests/data/golden/language_names.json.gz

The names are those of emoji in Unicode CLDR, as are the drawings' own.
"""

import argparse
import gzip
import hashlib
import json
import pathlib
import tarfile

from drawings_sources import CLDR

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "tests/data/golden/language_names.json.gz"
LOCALES = [
    "bg",
    "ca",
    "cs",
    "fi",
    "hu",
    "is",
    "kk",
    "kn",
    "lo",
    "lt",
    "mn",
    "ne",
    "nl",
    "ro",
    "si",
    "sr",
    "sv",
    "zu",
]
COUNT = 100  # per language


def main() -> None:
    """Reads the package, writes the names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=pathlib.Path, help="the tarball that npm pack gives")
    package = parser.parse_args().package
    if hashlib.sha256(package.read_bytes()).hexdigest() != CLDR.sha256:
        raise SystemExit(f"{package} is not {CLDR.name} {CLDR.version}")
    names = {}
    with tarfile.open(package) as archive:
        for locale in LOCALES:
            file = archive.extractfile(f"package/annotations/{locale}/annotations.json")
            found = json.load(file)["annotations"]["annotations"]
            spoken = [entry["tts"][0] for emoji, entry in found.items() if ord(emoji[0]) > 0x1F300]
            # Spread over all of them: faces, animals, food, places, tools.
            names[locale] = [spoken[i * len(spoken) // COUNT] for i in range(COUNT)]
    about = f"names of emoji, from {CLDR.name} {CLDR.version} by Unicode, Inc.; licence Unicode-3.0"
    packed = json.dumps({"about": about, "names": names}, ensure_ascii=False).encode()
    with GOLDEN.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as out:
        out.write(packed)
    print(f"{GOLDEN}: {len(names)} languages, {GOLDEN.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
