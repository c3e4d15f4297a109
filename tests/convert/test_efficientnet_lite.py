"""The published EfficientNet-Lite0 weights on a photograph, against torch.

The golden numbers are those of tools/make_efficientnet_golden.py.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from clipjax.convert.efficientnet_lite import TABLE, load_efficientnet_lite0
from clipjax.convert.files import open_tensors, read_all
from clipjax.data.packages import package_file
from clipjax.models.efficientnet import EfficientNetLite0

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def params(efficientnet_package):
    return load_efficientnet_lite0()


@pytest.fixture(scope="module")
def state(efficientnet_package):
    return read_all(open_tensors(package_file("efficientnet-lite0")).tensors)


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [("224x224", slice(None), slice(None)), ("75x101", slice(60, 135), slice(50, 151))],
)
def test_features_of_a_photograph_equal_torch(params, state, name, rows, columns):
    golden = json.loads((GOLDEN / "efficientnet_lite0.json").read_text(encoding="utf-8"))[name]
    pixels = np.asarray(Image.open(GOLDEN / "chelsea_224.jpg"))[rows, columns]
    image_BxHxWx3 = (pixels[None].astype(np.float32) - 127) / 128
    pooled, tokens = jax.jit(EfficientNetLite0().apply)({"params": params}, image_BxHxWx3)
    assert tokens.shape == (1, np.prod(golden["grid"]), 1280)
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(pooled[0, ::16], golden["pooled_every_16th"], **close)
    np.testing.assert_allclose(np.linalg.norm(pooled), golden["pooled_norm"], **close)
    np.testing.assert_allclose(tokens[0].mean(-1), golden["token_means"], **close)
    logits = pooled[0] @ state["_fc.weight"].T + state["_fc.bias"]
    assert np.argsort(-logits)[:3].tolist() == golden["top5"][:3]  # cats, all three
    assert set(golden["top5"][:3]) == {281, 282, 285}


def test_every_key_of_the_file_is_accounted_for(params, state):
    written = TABLE.from_params(params)
    for key, value in state.items():
        if not TABLE.drops(key):
            np.testing.assert_array_equal(written.pop(key), value, err_msg=key)
    assert not written
    dropped = [key for key in state if TABLE.drops(key)]
    assert len(dropped) == 2 + sum("num_batches_tracked" in key for key in state)
