"""Writes clipjax/assets/samples: two drawings of the style that is never trained on, for the README's first lines.

python tools/make_samples.py
"""

from pathlib import Path

from PIL import Image

from clipjax.data.drawings import TEST_STYLE, Drawings

FOLDER = Path(__file__).parent.parent / "clipjax" / "assets" / "samples"
NAMES = ("cat", "kite")


def main() -> None:
    """Writes NAME.png each, 64 x 64 RGBA."""
    drawings = Drawings("seen", styles=TEST_STYLE)
    records = {record["name"]: record for record in (drawings[i] for i in range(len(drawings)))}
    FOLDER.mkdir(exist_ok=True)
    for name in NAMES:
        Image.fromarray(records[name]["image"][0]).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
