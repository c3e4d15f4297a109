"""Out and in again: a run of clipjax becomes a directory of transformers, from which another run starts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipjax
from clipjax.cli import main
from clipjax.convert.source import open_source
from clipjax.data.tokenizers import make_tokenizer

CONFIG = Path(__file__).parents[1] / "configs" / "borrowed.py"


@pytest.mark.slow
def test_a_run_starts_from_what_another_left_in_transformers_format(tmp_path):
    first, theirs, second = tmp_path / "first", tmp_path / "theirs", tmp_path / "second"
    assert main(["train", f"--config={CONFIG}", f"--workdir={first}"]) == 0
    assert main(["convert", f"--source={first}", f"--target={theirs}", "--to=hugging_face"]) == 0
    images = [Image.new("RGB", (20, 16), colour) for colour in ("red", "navy")]
    texts = ["a red square", "a navy square"]
    wanted = clipjax.load(first)
    found = clipjax.load(theirs)
    np.testing.assert_allclose(found.encode_image(images), wanted.encode_image(images), atol=1e-6)
    np.testing.assert_allclose(found.encode_text(texts), wanted.encode_text(texts), atol=1e-6)
    section = open_source(theirs).config.tokenizer
    assert make_tokenizer(section, 8)(texts).tolist() == found.tokenizer(texts).tolist()
    # With a learning rate of zero the second run ends where it began: at the first one's weights.
    assert main(["train", f"--config={CONFIG}:{theirs}", f"--workdir={second}"]) == 0
    after = clipjax.load(second)
    for name, leaf in clipjax.rules.paths(wanted.params).items():
        other = clipjax.rules.paths(after.params)[name]
        np.testing.assert_array_equal(np.asarray(other), np.asarray(leaf), err_msg=name)
