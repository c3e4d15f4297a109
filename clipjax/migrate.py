"""Configs that earlier versions wrote, as this one says the same: the one place that knows old fields."""

import copy
from collections.abc import Mapping
from typing import Any

from clipjax.data import augment

# Fields that came later, each with the value at which a run does what it did before there was the field. A path is
# added where its section is there and it is not.
ADDED: dict[str, Any] = {
    "data.order": {"kind": "shuffle"},
}


def migrate(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run of any earlier version, in today's fields; today's own comes back as it is.

    Args:
      config: plain dicts, as `config.json` or a checkpoint's `meta` holds them; not changed.
    """
    config = copy.deepcopy(dict(config))
    data = config.get("data")
    if isinstance(data, dict) and "features" not in data:
        data["features"] = _features(data)
    for path, value in ADDED.items():
        *parents, leaf = path.split(".")
        section: Any = config
        for name in parents:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and leaf not in section:
            section[leaf] = copy.deepcopy(value)
    return config


def _features(data: dict[str, Any]) -> dict[str, Any]:
    """`data.features` of the sections `augment`, `captions`, `regions` and `languages`, which it takes out."""
    settings = augment.DEFAULTS | data.pop("augment", {})
    features = {
        "image": {"kind": "image", "views": 1, "augment": settings},
        "text": {"kind": "text", "captions": data.pop("captions", {"kind": "any"})},
    }
    regions = data.pop("regions", {"count": 0})
    if regions["count"]:
        # As a config of today says it, which leaves out what is as ever.
        plain = {"min_visible": 0.25, "min_side": 0.02, "text_length": None}
        settings = {k: v for k, v in regions.items() if k not in plain or v != plain[k]}
        features["regions"] = {"kind": "regions", **settings}
    tags = data.pop("languages", ())
    if tags:
        features["language"] = {"kind": "language", "tags": tags}
    return features
