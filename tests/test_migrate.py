"""Configs of earlier versions: what they meant, in today's fields."""

import copy
import json

from clipjax.config import flatten, from_json, to_json
from clipjax.data import augment
from clipjax.defaults import base_config
from clipjax.migrate import migrate
from tests.tiny_run import tiny_config

OLD_AUGMENT = {
    k: v
    for k, v in augment.DEFAULTS.items()
    if k not in ("jitter", "blur", "blur_sigma", "solarize")
}


def old(config, **data):
    """The config as the version before features wrote it."""
    plain = copy.deepcopy(config.to_dict())
    features = plain["data"].pop("features")
    del plain["data"]["order"]
    regions = {"count": 0, "min_visible": 0.25, "min_side": 0.02, "text_length": None}
    augmented = {k: features["image"]["augment"][k] for k in OLD_AUGMENT}
    plain["data"] |= {
        "augment": augmented,
        "captions": features["text"]["captions"],
        "languages": (),
        "regions": regions,
    } | data
    return json.loads(json.dumps(plain))


def same(a, b):
    return flatten(from_json(to_json(a))) == flatten(from_json(to_json(b)))


def test_a_plain_run():
    for config in (base_config(), tiny_config()):
        before = old(config)
        kept = copy.deepcopy(before)
        assert same(migrate(before), config)
        assert before == kept


def test_regions_and_languages():
    config = base_config()
    regions = {"count": 4, "min_visible": 0.5, "min_side": 0.02, "text_length": 10}
    found = migrate(old(config, regions=regions, languages=("en", "de")))
    with config.unlocked():
        config.data.features.regions = {
            "kind": "regions",
            **{"count": 4, "min_visible": 0.5, "text_length": 10},
        }
        config.data.features.language = {"kind": "language", "tags": ("en", "de")}
    assert same(found, config)


def test_todays_config_is_as_it_is():
    config = base_config()
    assert same(migrate(config.to_dict()), config)
    assert migrate({"data": {}})["data"]["order"] == {"kind": "shuffle"}
    assert migrate({"model": {"kind": "x"}}) == {"model": {"kind": "x"}}
