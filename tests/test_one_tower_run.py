"""A run without texts: labels and stored vectors in their place, from the records to a checkpoint that can be used."""

import jax
import jax.numpy as jnp
import numpy as np

import clipjax
from clipjax.models import image_section, model_section
from clipjax.train import train
from tests.tiny_run import tiny_config


def loss(outputs, batch, *, mesh=None):
    """Reads what the features made."""
    del mesh
    logits_BxC = 10 * outputs["image_embedding"]
    wanted_BxC = jax.nn.one_hot(batch["labels"][:, 0], logits_BxC.shape[1])
    likely = jnp.mean(jnp.sum(wanted_BxC * jax.nn.log_softmax(logits_BxC), axis=-1))
    return -likely + 0 * jnp.sum(batch["vector"]), {"vector": jnp.max(batch["vector"])}


def test_labels_and_vectors_train_an_image_tower(tmp_path):
    np.save(tmp_path / "v.npy", np.full((1000, 3), 7, np.float16))
    config = tiny_config(steps=2)
    image = image_section(size=16, patch=8, width=16, depth=1, heads=2)
    with config.unlocked():
        config.model = model_section(image, kind="image_encoder", embed_dim=8)
        config.losses = {"mine": {"kind": "tests.test_one_tower_run:loss"}}
        config.evals = {}
        config.optim.clip_values = ()
        del config.data.features["text"]
        names = ("Activities", "Animals & Nature", "Food & Drink", "Objects", "Travel & Places")
        config.data.features.labels = {"kind": "labels", "column": "category", "classes": names}
        config.data.features.vector = {
            "kind": "vectors",
            **{"shape": (3,), "files": {"drawings": str(tmp_path / "v.npy")}},
        }
    train(config, tmp_path / "run")
    assert '"mine/vector": 7.0' in (tmp_path / "run" / "metrics.jsonl").read_text()
    model = clipjax.load(tmp_path / "run")
    assert model.tokenizer is None
    assert model.encode_image([np.zeros((20, 20, 3), np.uint8)]).shape == (1, 8)
