"""Random-access sources of raw records: `len(source)` and `source[i] -> dict`, as clipjax/data/stream.py defines it."""

from collections.abc import Mapping
from typing import Any

from clipjax import registry
from clipjax.data.sources.captions import Captions
from clipjax.data.sources.synthetic import Synthetic
from clipjax.errors import UserError

__all__ = ["KINDS", "Captions", "Synthetic", "make_source"]

KINDS = {
    "array_record": "clipjax.data.sources.array_record:ArrayRecords",
    "captions": "clipjax.data.sources.captions:Captions",
    "drawings": "clipjax.data.drawings:Drawings",
    "parquet": "clipjax.data.sources.parquet:Parquet",
    "scenes": "clipjax.data.scenes:Scenes",
    "synthetic": "clipjax.data.sources.synthetic:Synthetic",
    "tars": "clipjax.data.sources.tars:Tars",
    "tfds": "clipjax.data.sources.tfds:TFDS",
}

# What an entry of `data.sources` says beside the source's own settings; see clipjax/data/stream.py.
SHARED = ("weight", "captions", "filter", "box_format", "window")


def make_source(config: Mapping[str, Any], name: str) -> Any:
    """The source of one entry of `data.sources`, or of an evaluator's `source`.

    Raises:
      UserError: an unknown kind or setting, or a source without records.
    """
    settings = {k: v for k, v in dict(config).items() if k not in SHARED}
    if "kind" not in settings:
        raise UserError(
            f"The source {name!r} needs a 'kind', one of {', '.join(KINDS)} or an import path."
        )
    kind = settings.pop("kind")
    source = registry.call(registry.lookup(kind, KINDS, "source"), settings, f"Source {name!r}")
    if not len(source):
        raise UserError(f"The source {name!r} has no records.")
    return source
