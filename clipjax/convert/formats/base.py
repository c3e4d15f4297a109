"""What every format offers, and what it works on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from clipjax.convert.files import Tensor
from clipjax.convert.tables import KeyTable
from clipjax.data.presets import Preset
from clipjax.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class Weights:
    """What lies at a path: a file of tensors, and the small files beside it.

    Attributes:
      path: as the user gave it, for error messages.
      kind: of the file, see `files.TensorFile`.
      tensors: key -> tensor, not yet read.
      folder: where configs and tokenizers are looked for; None for a lone file.
      other: plain values that the file holds beside the tensors.
    """

    path: Path
    kind: str
    tensors: Mapping[str, Tensor]
    folder: Path | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON object beside the tensors; None if there is no such file."""
        from clipjax.convert.folders import read_json

        if self.folder is None or not (self.folder / name).is_file():
            return None
        return read_json(self.folder / name)


@dataclass(frozen=True)
class Options:
    """What the user adds to what a checkpoint says of itself.

    Attributes:
      model: name of the architecture, for files that do not say which they hold.
      tokenizer: config section of a tokenizer, for files that come without.
    """

    model: str | None = None
    tokenizer: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Description:
    """A checkpoint of some format, understood.

    Attributes:
      model: the `model` section.
      table: from its tensors to the model's parameters.
      preset: how its images are prepared; None for models of texts.
      tokenizer: called when it is needed; None for models of images, or where there is none.
      resample: how the format's own library resamples a grid of positions (`positions.METHODS`).
      notes: what was taken for granted, as sentences for the user.
      hints: what the model itself does not tell but the way back needs, such as which of two layouts of keys it was.
    """

    model: ConfigDict
    table: KeyTable
    preset: Preset | None
    tokenizer: Callable[[], Tokenizer] | None
    resample: str
    notes: tuple[str, ...] = ()
    hints: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Export:
    """How a model is written in some format.

    Attributes:
      table: from the parameters to the format's tensors.
      weights: name of the file of tensors.
      files: name -> content of the small files beside it.
      metadata: of the safetensors file.
      notes: what the format's own library will do otherwise, as sentences for the user.
    """

    table: KeyTable
    weights: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()


class Format(Protocol):
    """A module of this package."""

    NAME: str

    def recognise(self, weights: Weights) -> bool:
        """Whether what lies there is of this format, by its content."""
        ...

    def describe(self, weights: Weights, options: Options) -> Description:
        """What it is. Raises UserError for what is not understood."""
        ...

    def export(
        self, config: ConfigDict, tokenizer: Tokenizer | None, hints: Mapping[str, Any]
    ) -> Export:
        """How the model of a run's config is written.

        Raises:
          UserError: names what the format cannot express.
        """
        ...
