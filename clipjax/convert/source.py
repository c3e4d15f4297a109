"""A checkpoint of any format as one thing: what it is, and its parameters, each read when it is asked for."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from clipjax import checkpoint
from clipjax.config import from_json, to_json
from clipjax.convert import formats, hub, orbax
from clipjax.convert.files import Tensor
from clipjax.convert.folders import open_weights
from clipjax.convert.positions import resample_grid, resample_line
from clipjax.convert.shapes import parameter_shapes
from clipjax.convert.tables import KeyTable
from clipjax.data.tokenizers import Tokenizer, make_tokenizer
from clipjax.data.tokenizers.absent import Absent
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.imports import find_modules

OURS = "clipjax"

# Beyond these a position table would be larger than any machine.
LARGEST = {"size": 16_384, "length": 1_000_000}


@dataclass(frozen=True)
class Source:
    """A checkpoint that has been understood.

    Attributes:
      format: a name of `formats.FORMATS`, or "clipjax".
      config: of a run with this model: `model`, `preprocess` and `tokenizer` are the checkpoint's.
      params: path -> parameter, not yet read, in the dtype that it is stored in.
      tokenizer: None for a model without texts; `Absent` where the checkpoint came without.
      resample: how a grid of positions is resampled.
      notes: what was taken for granted, as sentences.
      hints: see `formats.Description`.
      meta: of a checkpoint of clipjax, else empty.
    """

    format: str
    config: ConfigDict
    params: Mapping[str, Tensor]
    tokenizer: Tokenizer | None
    resample: str
    notes: tuple[str, ...] = ()
    hints: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def open_source(
    path: str | Path, form: str | None = None, options: formats.Options | None = None
) -> Source:
    """Understands the checkpoint at `path`; reads no parameter.

    Args:
      path: a file, a directory, a clipjax run or checkpoint, or `hf-hub:OWNER/NAME` (see `hub`).
      form: its format; None: recognised by its content.
      options: what the checkpoint does not say itself.

    Raises:
      UserError: nothing there, no known format, damaged, or not all of its tensors are understood.
    """
    options = options or formats.Options()
    path = hub.local(path)
    if form == OURS or (form is None and checkpoint.is_checkpoint(path)):
        return _ours(path, options)
    weights = open_weights(path)
    name = form if form is not None else formats.recognise(weights)
    found = formats.get(name).describe(weights, options)
    config = base_config()
    config.model = found.model
    config.model.dtype = "auto"
    if found.preset is not None:
        found.preset.apply(config)
    params = found.table.leaves(weights.tensors, parameter_shapes(config.model))
    tokenizer, notes = _tokenizer(found, config, options)
    notes += _left_out(found.table, weights.tensors)
    if tokenizer is not None:
        config.tokenizer = _tokenizer_section(tokenizer, weights.folder)
    return Source(name, config, params, tokenizer, found.resample, found.notes + notes, found.hints)


def _left_out(table: KeyTable, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What of the weights is not kept, such as CoCa's decoder; counters and positions' numbers are no weights."""
    keys = [k for k, t in tensors.items() if table.drops(k) and np.dtype(t.dtype).kind not in "iub"]
    if not keys:
        return ()
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return (f"Not kept, as this model does not read it: {', '.join(keys[:5])}{more}.",)


def _tokenizer(
    found: formats.Description, config: ConfigDict, options: formats.Options
) -> tuple[Tokenizer | None, tuple[str, ...]]:
    """The tokenizer, and what there is to say about it."""
    if "text" not in config.model:
        if options.tokenizer is not None:
            raise UserError(
                "This checkpoint has no text tower, so there is no use for a tokenizer."
            )
        return None, ()
    length, vocab_size = config.model.text.length, config.model.text.vocab_size
    if options.tokenizer is not None:
        tokenizer = make_tokenizer(options.tokenizer, length)
    elif found.tokenizer is not None:
        tokenizer = found.tokenizer()
    else:
        note = "It came without a tokenizer, so texts cannot be embedded, only ids; --tokenizer=FILE adds one."
        return Absent(length, vocab_size), (note,)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"The tokenizer has {tokenizer.vocab_size} ids, but the text tower knows only {vocab_size}; it belongs to "
            "another model."
        )
    return tokenizer, ()


def _tokenizer_section(tokenizer: Tokenizer, folder: Path | None) -> dict[str, Any]:
    """The section of a run's config that makes this tokenizer, of the checkpoint's own file."""
    section = checkpoint.pack_tokenizer(tokenizer)["config"]
    section.pop("length")
    file = section.pop("file", None)
    if file is not None and folder is not None:
        names = [p for p in (file, "spiece.model", "tokenizer.model") if (folder / p).is_file()]
        section["source"] = str(folder / names[0]) if names else file
    return section


def _ours(path: str | Path, options: formats.Options) -> Source:
    if options.model is not None:
        raise UserError("A checkpoint of clipjax says which model it is; leave --model out.")
    folder = checkpoint.find(path)
    meta, packed = checkpoint.read_meta(folder)
    find_modules(meta["config"], meta.get("modules", {}), str(path))
    config = from_json(to_json(meta["config"]))
    tokenizer = None if packed["config"] is None else checkpoint.unpack_tokenizer(packed)
    if options.tokenizer is not None:
        if tokenizer is None:
            raise UserError(
                "This checkpoint has no text tower, so there is no use for a tokenizer."
            )
        tokenizer = make_tokenizer(options.tokenizer, config.model.text.length)
    origin = meta.get("origin", {})
    params = orbax.open_params(epath.Path(folder))
    checkpoint.check_shapes(params, parameter_shapes(config.model, config), str(path))
    return Source(
        OURS,
        config,
        params,
        tokenizer,
        origin.get("resample", "bicubic_antialias"),
        hints=origin.get("hints", {}),
        meta=meta,
    )


def resized(source: Source, size: int | None = None, length: int | None = None) -> Source:
    """The same model for images of another size, or texts of another length.

    Positions are resampled as the library that the checkpoint came from does it; see `positions`.

    Raises:
      UserError: the model has no positions of that kind, or its tower cannot take the size.
    """
    if size is None and length is None:
        return source
    config = ConfigDict(source.config.to_dict(), type_safe=False)
    params = dict(source.params)
    for tower, field, value in (("image", "size", size), ("text", "length", length)):
        if value is None:
            continue
        if tower not in config.model:
            raise UserError(f"The model has no {tower} tower, so it has no {field} to change.")
        if not 1 <= value <= LARGEST[field]:
            raise UserError(f"The {field} must be from 1 to {LARGEST[field]:,}, not {value}.")
        config.model[tower][field] = value
    tokenizer = source.tokenizer
    if length is not None and tokenizer is not None:
        tokenizer = checkpoint.with_length(tokenizer, length)
    wanted = flatten_dict(parameter_shapes(config.model, config), sep="/")
    for path, tensor in source.params.items():
        shape = tuple(wanted[path].shape)
        if tensor.shape == shape:
            continue
        new = resampled(source, path, shape)
        if new is None:
            raise UserError(
                f"{path} has shape {list(tensor.shape)} and would need {list(shape)}; only positions can be resampled."
            )
        params[path] = new
    return dataclasses.replace(source, config=config, params=params, tokenizer=tokenizer)


def resampled(source: Source, path: str, shape: tuple[int, ...]) -> Tensor | None:
    """The table of positions at `path` for another resolution or text length, made when it is read.

    None if it is no such table, or has that shape in no resolution.
    """
    tensor = source.params[path]
    rows = shape[0] if tensor.shape[1:] == shape[1:] else 0
    if path == "text/position_embedding" and rows:
        return Tensor(shape, tensor.dtype, lambda: resample_line(tensor.read(), rows))
    if path.startswith("image/") and path.endswith("position_embedding"):
        prefix = _prefix(source.config.model.image)
        side = math.isqrt(max(rows - prefix, 0))
        if side and side**2 == rows - prefix:
            how = source.resample
            return Tensor(
                shape, tensor.dtype, lambda: resample_grid(tensor.read(), side, how, prefix)
            )
    return None


def _prefix(image: Mapping[str, Any]) -> int:
    """Rows of an image tower's position table that belong to no patch."""
    if image["kind"] == "resnet":
        return 1
    has_class = (
        image["class_token"] if image["class_token"] is not None else image["pool"] == "class"
    )
    return int(has_class and image["class_position"])


def cast(source: Source, dtype: str | None) -> Source:
    """The same with all parameters in one dtype ("float32", "bfloat16", "float16"); None keeps them as they are.

    Raises:
      UserError: when such a parameter is read, if one is too large for the dtype.
    """
    if dtype is None:
        return source
    kind = jax.numpy.dtype(dtype)

    def read(path: str, tensor: Tensor) -> np.ndarray:
        array = tensor.read()
        new = array.astype(kind)
        if not np.isfinite(new).all() and np.isfinite(array).all():
            raise UserError(
                f"{path} holds numbers that {dtype} cannot; choose float32 or bfloat16."
            )
        return new

    params = {
        path: t if t.dtype == kind else Tensor(t.shape, kind, lambda p=path, t=t: read(p, t))
        for path, t in source.params.items()
    }
    return dataclasses.replace(source, params=params)
