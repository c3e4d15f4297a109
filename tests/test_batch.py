"""What is compiled and planned has the shapes of what the pipeline gives."""

import numpy as np
import pytest

from clipjax.batch import example_batch
from clipjax.data.pipeline import batches
from clipjax.data.stream import Stream
from clipjax.errors import UserError
from clipjax.fields import HOST_ONLY
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.train import to_device
from tests.tiny_run import tiny_config

WAYS = {
    "plain": {},
    "views": {"image": {"kind": "image", "views": 3}},
    "texts": {"text": {"kind": "text", "captions": {"kind": "several", "count": 3}}},
    "regions": {"regions": {"kind": "regions", "count": 4, "min_visible": 0.2, "min_side": 0.0}},
    "languages": {"language": {"kind": "language", "tags": ("de", "en")}},
    "numbers": {"layout": {"kind": "column", "column": "layout_seed", "dtype": "int32"}},
}


@pytest.mark.parametrize("way", [*WAYS, "all"])
def test_the_batch_is_what_the_example_says(way):
    config = tiny_config()
    with config.unlocked():
        config.data.sources = {"scenes": {"kind": "tests.tiny_parts:NumberedScenes", "length": 50}}
        config.data.features.text.captions = {"kind": "any"}
        for changes in WAYS.values() if way == "all" else [WAYS[way]]:
            config.data.features.update(changes)
    batch = next(batches(Stream(config), 8, 0, 8))
    wanted = {k: (x.shape, x.dtype) for k, x in example_batch(config, 8).items()}
    given = {k: x for k, x in batch.items() if k not in HOST_ONLY}
    assert {k: (x.shape, x.dtype) for k, x in given.items()} == wanted
    if "boxes" in batch:
        assert batch["region_mask"].any()
        assert (batch["boxes"][~batch["region_mask"]] == 0).all()
        assert (batch["boxes"][batch["region_mask"]].max(axis=-1) > 0).all()
    if "language" in batch:
        assert set(np.unique(batch["language"])) <= {-1, 0, 1}


def test_sources_must_agree_on_the_number_of_texts():
    config = tiny_config()
    with config.unlocked():
        config.data.sources = {
            "a": {"kind": "synthetic", "captions": {"kind": "several", "count": 2}},
            "b": {"kind": "synthetic", "captions": {"kind": "any"}},
        }
    with pytest.raises(UserError, match=r"as many texts a sample; here they give: a 2, b 1"):
        Stream(config)


def test_every_field_goes_to_the_devices():
    config = tiny_config()
    with config.unlocked():
        config.data.features.tilt = {"kind": "tests.data.own_features:Tilt"}
    batch = next(batches(Stream(config), 8, 0, 8))
    sent = to_device(batch, batch_sharding(make_mesh()))
    assert sent.keys() == batch.keys() - set(HOST_ONLY) == example_batch(config).keys()
    assert sent["tilt"].tolist() == batch["tilt"].tolist()
