"""Models, built from the `model` section of a config."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from clipjax import registry
from clipjax.errors import UserError
from clipjax.models import quantize
from clipjax.models.attention import IMPLEMENTATIONS
from clipjax.platform import target_platform

IMAGE_TOWERS = {
    "vit": "clipjax.models.image:ViT",
    "efficientnet_lite0": "clipjax.models.efficientnet:EfficientNetLite0",
}
TEXT_TOWERS = {
    "transformer": "clipjax.models.text:TextTransformer",
    "bert": "clipjax.models.bert:Bert",
}
MODELS = {"dual_encoder": "clipjax.models.dual_encoder:DualEncoder"}

# Set once for the whole model in its own section, and handed to both towers.
_DTYPES = ("dtype", "param_dtype")
# The same for towers that have them: setting of the model -> (name in a tower, default). A text tower's own `attention`
# says what a token may see.
_HOW = {"attention": ("attention_impl", "auto"), "quantize": ("quantize", None)}
_FLOATS = ("float32", "bfloat16", "float16")


def section(kind: str, table: Mapping[str, str], what: str, **settings: Any) -> ConfigDict:
    """A config section for a module: `kind`, and all its settings with their defaults.

    Raises:
      UserError: no such kind, or a setting that it does not have (with the nearest one).
    """
    module = registry.lookup(kind, table, what)
    shared = () if table is MODELS else (*_DTYPES, *(name for name, _ in _HOW.values()))
    fields = {
        f.name: None if f.default is dataclasses.MISSING else f.default
        for f in dataclasses.fields(module)
        if f.name not in ("parent", "name", "image", "text", *shared)
    }
    if table is MODELS:
        fields |= {k: default for k, (_, default) in _HOW.items()}
    for name in settings:
        if name not in fields:
            raise UserError(
                f"The {what} {kind!r} has no setting {name!r}{registry.nearest(name, fields)}."
            )
    return ConfigDict({"kind": kind, **fields, **settings}, type_safe=False)


def image_section(kind: str = "vit", **settings: Any) -> ConfigDict:
    """Section `config.model.image`."""
    return section(kind, IMAGE_TOWERS, "image tower", **settings)


def text_section(kind: str = "transformer", **settings: Any) -> ConfigDict:
    """Section `config.model.text`."""
    return section(kind, TEXT_TOWERS, "text tower", **settings)


def model_section(
    image: ConfigDict | None = None,
    text: ConfigDict | None = None,
    kind: str = "dual_encoder",
    **settings: Any,
) -> ConfigDict:
    """Section `config.model`, with its towers.

    `dtype` "auto" is bfloat16 on accelerators and float32 on CPU; `attention` is one of `attention.IMPLEMENTATIONS`,
    `quantize` None or a kind of `quantize.KINDS`; all three are for both towers. See docs/precision.md.
    """
    result = section(kind, MODELS, "model", **({"dtype": "auto"} | settings))
    result.image = image_section() if image is None else image
    result.text = text_section() if text is None else text
    return result


def compute_dtype(name: str) -> str:
    """What "auto" means on the target platform."""
    if name == "auto":
        return "float32" if target_platform() == "cpu" else "bfloat16"
    if name not in _FLOATS:
        raise UserError(f"model.dtype must be auto, {', '.join(_FLOATS)}, not {name!r}.")
    return name


def matmul_precision(dtype: str) -> contextlib.AbstractContextManager[None]:
    """Within it, programs are traced with full-precision products if the compute `dtype` is float32.

    By default accelerators round float32 operands (TF32 on GPU, bfloat16 on TPU). Products of bfloat16 operands are
    exact, and summed in float32, so with them nothing is set.
    """
    if compute_dtype(dtype) == "float32":
        return jax.default_matmul_precision("float32")
    return contextlib.nullcontext()


def make_model(config: Mapping[str, Any]) -> nn.Module:
    """The module of a `model` section.

    Raises:
      UserError: an unknown kind or setting, or a tower that cannot do what the model's settings ask for.
    """
    # Checkpoints of before these settings have none.
    how = {k: config.get(k, default) for k, (_, default) in _HOW.items()}
    if how["attention"] not in IMPLEMENTATIONS:
        raise UserError(
            f"model.attention cannot be {how['attention']!r}"
            f"{registry.nearest(how['attention'], IMPLEMENTATIONS)}."
        )
    quantize.check(how["quantize"])
    apart = ("image", "text", "kind", *_HOW)
    settings = {k: v for k, v in dict(config).items() if k not in apart}
    settings["dtype"] = compute_dtype(settings["dtype"])
    if settings["param_dtype"] not in _FLOATS:
        raise UserError(
            f"model.param_dtype must be {', '.join(_FLOATS)}, not {settings['param_dtype']!r}."
        )
    dtypes = {k: settings[k] for k in _DTYPES}
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}

    def tower(part: str, table: Mapping[str, str]) -> nn.Module:
        options = dict(config[part])
        kind = options.pop("kind")
        module = registry.lookup(kind, table, f"{part} tower")
        fields = {f.name for f in dataclasses.fields(module)}
        if how["quantize"] is not None and "quantize" not in fields:
            raise UserError(
                f"The {part} tower {kind!r} cannot be quantised; set model.quantize to None."
            )
        given = dtypes | {n: how[k] for k, (n, _) in _HOW.items() if n in fields}
        return registry.call(module, options, f"The {part} tower {kind!r}", **given)

    towers = {"image": tower("image", IMAGE_TOWERS), "text": tower("text", TEXT_TOWERS)}
    kind = config["kind"]
    return registry.call(
        registry.lookup(kind, MODELS, "model"), settings, f"The model {kind!r}", **towers
    )


def example_batch(config: Mapping[str, Any], size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch that `make_model(config)` takes."""
    side, length = config["image"]["size"], config["text"]["length"]
    return {
        "image": jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8),
        "text": jax.ShapeDtypeStruct((size, length), jnp.int32),
        "sample_seed": jax.ShapeDtypeStruct((size,), jnp.uint32),
    }
