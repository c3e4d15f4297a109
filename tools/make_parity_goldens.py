"""Makes tests/convert/golden/parity/: what the real libraries compute with the weights of parity_weights.py.

    pip install 'clipjax[reference]'
    python tools/make_parity_goldens.py [--only=NAME] [--output=FOLDER] [--long-clip=FOLDER] [--clip-moe=FOLDER]

`--only` takes the beginning of cases' names. Long-CLIP and CLIP-MoE are not packages: their cases are made when the
folders of their checkouts are given (github.com/beichenzbc/Long-CLIP, github.com/OpenSparseLLMs/CLIP-MoE).
Nothing is downloaded, and nothing of clipjax takes part. tools/parity/golden.py says what a golden holds.
"""

import argparse
import logging
import pathlib
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from parity import (  # noqa: E402  (after the path to parity_weights is set)
    big_vision,
    golden,
    hugging_face,
    open_clip_files,
    openai_files,
    research,
    timm_files,
)


def main() -> None:
    """Makes the cases that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="beginning of the names of the cases to make")
    parser.add_argument("--output", type=pathlib.Path, default=None, help="folder of the files")
    parser.add_argument("--long-clip", type=pathlib.Path, default=None, help="a checkout")
    parser.add_argument("--clip-moe", type=pathlib.Path, default=None, help="a checkout")
    arguments = parser.parse_args()
    output = arguments.output or REPOSITORY / "tests" / "convert" / "golden" / "parity"
    output.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)  # open_clip's, of models that have no weights yet
    cases = {}
    for module in (openai_files, open_clip_files, hugging_face, timm_files, big_vision):
        cases |= module.CASES
    cases |= research.cases(arguments.long_clip, arguments.clip_moe)
    for name, make in cases.items():
        if not name.startswith(arguments.only):
            continue
        with golden.repeatable():
            path = golden.write({"case": name, **make()}, output)
        print(f"{path.name}: {path.stat().st_size / 1000:.1f} kB")


if __name__ == "__main__":
    main()
