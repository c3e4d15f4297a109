'''Stages: parameter surgery between two runs, as pure functions on parameters and config.

A stage is `(params, config, **settings) -> (params, config)`:

    def stretch_positions(params, config, *, length=248, keep=20):
        """Long-CLIP's positions: the first `keep` as they are, the others interpolated."""
        old_LxD = params["text"]["position_embedding"]
        ...
        params["text"]["position_embedding"] = new_LxD
        config.model.text.length = length
        return params, config

    clipjax stage --stage=experiments.mine.stages:stretch_positions --source=runs/a --target=runs/b --stage.length=248

- `params`: nested dict of NumPy arrays (the averaged parameters, where a run keeps averages), the stage's own copy of
  the dicts. What it gives back may hold NumPy or JAX arrays.
- `config`: the whole config of the checkpoint, an unlocked `ConfigDict`, a copy. What the stage changes of
  `config.model` must be what its parameters fit; that is checked, by path and shape.
- settings are keyword arguments with or without defaults, checked against the signature.
- It is deterministic: randomness comes from a setting `seed`.

The target is a checkpoint of clipjax: `config.init = {"": TARGET}` starts a run from it, and every command takes it.
The tokenizer travels with it. Where the stage changes `config.tokenizer`, it is made anew from that section, and where
it changes only `config.model.text.length`, it gets rows of that length.
'''

import inspect
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from clipjax import checkpoint, registry, rules
from clipjax.config import to_json
from clipjax.convert import orbax
from clipjax.convert.files import Tensor
from clipjax.convert.shapes import parameter_shapes
from clipjax.convert.source import Source, open_source
from clipjax.data.tokenizers import Tokenizer, make_tokenizer
from clipjax.data.tokenizers.absent import Absent
from clipjax.errors import UserError
from clipjax.imports import used_modules
from clipjax.workdir import versions

STAGES = {
    "add_lora": "clipjax.models.adapters:add_lora",
    "merge_lora": "clipjax.models.adapters:merge_lora",
    "rewrite": "clipjax.stages:rewrite",
}


def rewrite(params: Any, config: ConfigDict) -> tuple[Any, ConfigDict]:
    """Changes nothing: a checkpoint of an earlier version, or of another format, is written as today's."""
    return params, config


def apply(stage: str, source: str, target: str, settings: Mapping[str, Any] | None = None) -> None:
    """Runs a stage on a checkpoint and writes another one, whole or not at all.

    Args:
      stage: a key of `STAGES`, or an import path.
      source: what `clipjax.load` takes: a workdir, or a checkpoint of any format.
      target: a directory that does not exist yet, or is empty.
      settings: of the stage.

    Raises:
      UserError: no such stage, source or setting; a stage that gives something else than parameters and the config of a
        model that they fit (all of them are named); a target that exists.
    """
    settings = dict(settings or {})
    folder = epath.Path(target).absolute() if "://" not in target else epath.Path(target)
    orbax.check_new(folder)
    path = STAGES.get(stage, stage)
    function = registry.lookup(stage, STAGES, "stage")
    found = open_source(source)
    params, config = run(function, path, *_read(found), settings)
    tensors = {
        name: Tensor(array.shape, array.dtype, lambda array=array: array)
        for name, array in params.items()
    }
    tokenizer = _tokenizer(found, config)
    meta = {
        "samples": found.meta.get("samples", 0),
        "config": json.loads(to_json(config)),
        "versions": versions(),
        "modules": found.meta.get("modules", {}) | used_modules(config),
        "origin": {
            "format": found.meta.get("origin", {}).get("format", found.format),
            "resample": found.resample,
            "hints": dict(found.hints),
        },
        "stages": [
            *found.meta.get("stages", []),
            {"stage": stage, "source": str(source), "settings": json.loads(json.dumps(settings))},
        ],
    }
    packed = checkpoint.pack_tokenizer(tokenizer) if tokenizer is not None else None
    if folder.exists():
        folder.rmdir()  # it is empty
    orbax.write(folder, tensors, meta, packed or {"config": None, "files": {}})


def run(
    function: Any, path: str, params: Any, config: ConfigDict, settings: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], ConfigDict]:
    """Calls a stage, and checks what it gives against the model of the new config.

    Args:
      function: the stage.
      path: its import path, for errors.
      params: nested dict of arrays.
      config: unlocked.
      settings: of the stage.

    Returns:
      (path -> array, config).

    Raises:
      UserError: see `apply`.
    """
    what = f"The stage {path!r}"
    names = list(inspect.signature(function).parameters)[:2]
    if len(names) < 2:
        raise UserError(f"{what} must take (params, config, **settings), not {names}.")
    # Whatever a stage calls them, they are its first two arguments.
    given = dict(zip(names, (params, config), strict=True))
    result = registry.call(function, settings, what, **given)
    if not isinstance(result, tuple) or len(result) != 2:
        raise UserError(f"{what} must return (params, config), not a {type(result).__name__}.")
    params, config = result
    if not isinstance(params, Mapping) or not isinstance(config, ConfigDict):
        kinds = ", ".join(type(x).__name__ for x in result)
        raise UserError(f"{what} must return (nested dict of arrays, ConfigDict), not ({kinds}).")
    flat = rules.paths(params)
    for name, leaf in flat.items():
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise UserError(f"{what} gives {name!r} as a {type(leaf).__name__}, not as an array.")
    try:
        wanted = parameter_shapes(config.model, config)
    except UserError as error:
        raise UserError(f"{what} gives a config.model that is none: {error}") from error
    try:
        checkpoint.check_shapes(params, wanted, path)
    except UserError as error:
        problems = str(error).partition("does not fit the model: ")[2]
        raise UserError(
            f"{what} gives parameters that its config.model does not fit: {problems}"
        ) from error
    return {name: np.asarray(leaf) for name, leaf in flat.items()}, config


def _read(source: Source) -> tuple[dict[str, Any], ConfigDict]:
    """A checkpoint's parameters as a tree of arrays, and a copy of its config that may be changed."""
    flat = {name: np.asarray(tensor.read()) for name, tensor in source.params.items()}
    return rules.tree(flat), ConfigDict(source.config.to_dict(), type_safe=False)


def _tokenizer(source: Source, config: ConfigDict) -> Tokenizer | None:
    """The source's tokenizer as the new config wants it."""
    text = config.model.get("text")
    length = text.get("length") if text is not None else None
    if config.get("tokenizer") != source.config.get("tokenizer"):
        tower = source.tokenizer.length if source.tokenizer is not None else 77
        return make_tokenizer(config.tokenizer, tower if length is None else length)
    tokenizer = source.tokenizer
    if tokenizer is None or length in (None, tokenizer.length):
        return tokenizer
    if isinstance(tokenizer, Absent):
        return Absent(length, tokenizer.vocab_size)
    return checkpoint.with_length(tokenizer, length)
