"""Data sets prepared by tensorflow-datasets, through its `data_source`, without TensorFlow."""

from collections.abc import Sequence
from typing import Any

from clipjax.data.bad import BadRecord
from clipjax.data.sources.rows import record
from clipjax.errors import UserError


class TFDS:
    """One split of a data set that was prepared in the ArrayRecord format.

    Images stay encoded, so that they are decoded and cropped as all others.

    Args:
      name: such as "coco_captions" or "my_set:1.0.0".
      split: such as "train" or "train[:90%]".
      data_dir: where it was prepared; None: the package's default.
      image, text, language: features of images, captions and language tags; a feature inside another is written
        "captions/text". See `rows.record`.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        data_dir: str | None = None,
        image: str | bool | None = None,
        text: str | Sequence[str] | None = None,
        language: str | None = None,
    ):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise UserError(
                "A source of the kind 'tfds' needs tensorflow-datasets: pip install 'clipjax[tfds]'."
            ) from error
        try:
            builder = tfds.builder(name, data_dir=data_dir)
            features = builder.info.features
            images = {
                k: tfds.decode.SkipDecoding()
                for k, f in (features or {}).items()
                if isinstance(f, tfds.features.Image)
            }
            self._source = builder.as_data_source(split=split, decoders=images)
        except Exception as error:  # a dozen kinds of them
            raise UserError(
                f"The data set {name!r}, split {split!r}, cannot be read: {str(error).strip().splitlines()[0]} "
                "(prepare it with file_format='array_record')."
            ) from error
        self._settings = (image, text, language)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from google.protobuf.message import DecodeError

        try:
            example = self._source[index]
        except (RuntimeError, ValueError, DecodeError) as error:  # a checksum, or what it guards
            raise BadRecord("file is damaged here") from error
        return record(_flat(example), *self._settings)


def _flat(example: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested features by their paths; a sequence of features is a dict of lists already."""
    flat: dict[str, Any] = {}
    for name, value in example.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name}/")
        else:
            flat[before + name] = value
    return flat
