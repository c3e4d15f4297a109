"""What the README prints runs as pasted."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from clipjax.data.drawings import TEST_STYLE, Drawings

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "clipjax" / "assets" / "samples"


def test_the_snippet_after_the_quickstart(tiny_run, tmp_path, monkeypatch):
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(tiny_run)
    (tmp_path / "clipjax").symlink_to(ROOT / "clipjax")
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(snippet, found)
    image, text = found["image"], found["text"]
    assert image.shape == text.shape == (2, found["model"].config.model.embed_dim)
    assert np.linalg.norm(image[0] - image[1]) > 0
    np.testing.assert_allclose(found["similarity"], image @ text.T)


def test_the_samples_are_drawings_of_the_held_out_style():
    drawings = Drawings("seen", styles=TEST_STYLE)
    records = {record["name"]: record for record in (drawings[i] for i in range(len(drawings)))}
    for path in SAMPLES.glob("*.png"):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), records[path.stem]["image"][0])
    assert {path.stem for path in SAMPLES.glob("*.png")} == {"cat", "kite"}
