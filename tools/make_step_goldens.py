"""Writes tests/golden/step_*.txt: how the train steps of some configs are split over eight devices, and what travels.

    python tools/make_step_goldens.py            # all; run it with each Python of constraints.txt
    python tools/make_step_goldens.py NAME ...   # some

Collectives depend on XLA, so there is a block of them for each minor version of JAX, and this program writes the one of
the JAX that it runs with. The others stay as long as all above them stays; else they are of another program, and are
taken out. Read the difference before you commit it. About a minute on two cores; tests/step_golden.py says what the
blocks hold.
"""

import argparse
import sys
from pathlib import Path

from clipjax.plan import topology

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    """Writes the files."""
    topology.prepare("cpu:8")
    import step_golden  # only now may JAX start

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(step_golden.CASES)}; default all")
    names = parser.parse_args().names or list(step_golden.CASES)
    for name in names:
        if name not in step_golden.CASES:
            raise SystemExit(f"There is no {name!r}; there are {', '.join(step_golden.CASES)}.")
        print(f"{step_golden.path(name).relative_to(step_golden.ROOT)}: {write(name)}", flush=True)


def write(name: str) -> str:
    """Writes one file, and says what has changed."""
    from tests import step_golden

    job = step_golden.make(name)
    found = step_golden.resolved(name, job) | step_golden.compiled(job)
    before = step_golden.read(name)
    common = [title for title in found if not title.startswith("collectives")]
    others = {t: lines for t, lines in before.items() if t not in found}
    same = all(before.get(title) == found[title] for title in common)
    blocks = {t: found[t] for t in common}
    versions = {step_golden.COLLECTIVES: found[step_golden.COLLECTIVES]} | (others if same else {})
    head = f"Made by {step_golden.COMMAND}; tests/step_golden.py says what this is.\n\n"
    file = step_golden.path(name)
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        head + step_golden.join(blocks | dict(sorted(versions.items()))), encoding="utf-8"
    )
    if others and not same:
        return f"taken out, to be made again with its own Python: {'; '.join(others)}"
    if before == found | others:
        return "as before"
    return "changed" if before else "new"


if __name__ == "__main__":
    main()
