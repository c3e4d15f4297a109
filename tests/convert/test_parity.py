"""Every format and architecture against the library that it comes from, and back to the last bit.

The goldens (tests/convert/golden/parity, made by tools/make_parity_goldens.py) hold what the libraries' own models gave
for weights that parity_weights.py makes anew from the keys.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from clipjax.convert.command import convert
from clipjax.convert.express import check_expressed
from clipjax.convert.folders import open_weights
from clipjax.convert.source import open_source
from clipjax.models import make_model
from tests.convert.parity_cases import GOLDENS, lay_out, register_timm

TOLERANCE = 1e-5


def embed(source, golden):
    """What our model makes of a golden's inputs."""
    model = make_model(source.config.model)
    params = unflatten_dict({p: jnp.asarray(t.read()) for p, t in source.params.items()}, sep="/")
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    batch = golden.batch()
    return jax.jit(lambda p, b: model.apply({"params": p}, b))(params, batch)


@pytest.mark.parametrize("name", GOLDENS)
def test_outputs(name, tmp_path, monkeypatch):
    golden = GOLDENS[name]
    register_timm(golden, monkeypatch)
    path = lay_out(golden, tmp_path)
    source = open_source(path, options=golden.options())
    assert source.format == golden.format
    outputs = embed(source, golden)
    compared = 0
    for field, wanted in golden.embeddings().items():
        found = np.asarray(outputs[field])
        assert np.abs(found - wanted).max() <= TOLERANCE, (field, np.abs(found - wanted).max())
        compared += 1
    assert compared


# What a source holds that no model reads, and that is therefore not written back as it was (docs/checkpoints.md).
NOT_WRITTEN = (
    "position_ids",
    "mask_token",
    "num_batches_tracked",
    "text_decoder.",
    "pooler.dense.",
)
DEAD_ROWS = {"positional_embedding": np.s_[20:], "positional_embedding_res": np.s_[:20]}


@pytest.mark.parametrize("name", GOLDENS)
def test_back(name, tmp_path, monkeypatch):
    """Through clipjax's own checkpoint and back: every tensor bit for bit, and the same model when read again."""
    golden = GOLDENS[name]
    register_timm(golden, monkeypatch)
    path = lay_out(golden, tmp_path / "theirs")
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert convert(str(path), str(ours), options=golden.options()) == 0
    assert convert(str(ours), str(back), to=golden.format) == 0
    written, original = open_weights(back).tensors, open_weights(path).tensors
    for key, tensor in original.items():
        if key not in written:
            assert any(part in key for part in NOT_WRITTEN), key
            continue
        wanted, found = np.array(tensor.read()), np.array(written[key].read())
        if name in ("clip_moe", "long_clip") and key in DEAD_ROWS:
            wanted[DEAD_ROWS[key]] = 0
        assert found.dtype == wanted.dtype, key
        if not key.endswith(("num_batches_tracked", "mask_token")) and "pooler.dense" not in key:
            np.testing.assert_array_equal(found, wanted, err_msg=key)
    assert not [key for key in written if key not in original]
    again, first = open_source(back, options=golden.options()), open_source(ours)
    check_expressed(first.config.model, again.config.model, name)
    check_expressed(again.config.model, first.config.model, name)
