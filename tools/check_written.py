"""Proves that what `clipjax convert` writes loads in the libraries that it is written for, and gives the same there.

    python tools/check_written.py write --output=DIR                                    # with clipjax
    python tools/check_written.py read --input=DIR [--long-clip=DIR] [--clip-moe=DIR]   # with torch and the libraries

`write` converts every parity golden, and tiny models of clipjax's own, to clipjax's checkpoint and from there into
every format that can express it; beside each it saves inputs, its own embeddings, ids of texts and pixels of an image.
`read` loads each as a user of the library would, with no file touched and no key missing or left over, and compares.
It prints tables in Markdown and writes DIR/written.json. The two need not be installed together.
"""

import argparse
import pathlib
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))


def main() -> None:
    """Does one of the two halves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    halves = parser.add_subparsers(dest="half", required=True)
    write = halves.add_parser("write", help="with clipjax")
    write.add_argument("--output", type=pathlib.Path, required=True)
    read = halves.add_parser("read", help="with torch and the libraries")
    read.add_argument("--input", type=pathlib.Path, required=True)
    read.add_argument("--long-clip", type=pathlib.Path, help="a checkout")
    read.add_argument("--clip-moe", type=pathlib.Path, help="a checkout")
    for half in (write, read):
        half.add_argument("--only", default="", help="beginning of the names of the cases")
    given = parser.parse_args()
    if given.half == "write":
        from written import ours

        ours.write(given.output.absolute(), given.only)
    else:
        from written import theirs

        checkouts = {"long_clip": given.long_clip, "clip_moe": given.clip_moe}
        sys.exit(theirs.read(given.input.absolute(), given.only, checkouts))


if __name__ == "__main__":
    main()
