"""From the configs of transformers' encoders to sections of a model, and back."""

from collections.abc import Mapping
from typing import Any

from clipjax.errors import UserError

# transformers' names of activations -> ours; the first one of a meaning is what is written.
_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def activation(name: str) -> str:
    """Our name of transformers' `hidden_act`.

    Raises:
      UserError: it is none of the activations that these models have.
    """
    if name not in _ACTIVATIONS:
        raise UserError(
            f"The activation {name!r} (hidden_act in config.json) is not supported; "
            f"{', '.join(_ACTIVATIONS)} are."
        )
    return _ACTIVATIONS[name]


def activation_name(ours: str) -> str:
    """Its name in transformers.

    Raises:
      UserError: these models have no such activation.
    """
    for name, meaning in _ACTIVATIONS.items():
        if meaning == ours:
            return name
    raise UserError(f"transformers' models of these families cannot express activation = {ours!r}.")


def square(value: Any, what: str) -> int:
    """A side in pixels, where transformers also takes two.

    Raises:
      UserError: height and width differ.
    """
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if len(set(sides)) != 1:
        raise UserError(f"config.json: {what} is {value}, but clipjax's images are square.")
    return int(sides[0])


def encoder(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that image and text towers share."""
    return dict(
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_ratio=config["intermediate_size"] / config["hidden_size"],
        activation=activation(config["hidden_act"]),
        eps=config["layer_norm_eps"],
    )


def encoder_config(tower: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `encoder`."""
    return dict(
        hidden_size=tower["width"],
        intermediate_size=round(tower["mlp_ratio"] * tower["width"]),
        num_hidden_layers=tower["depth"],
        num_attention_heads=tower["heads"],
        hidden_act=activation_name(tower["activation"]),
        layer_norm_eps=tower["eps"],
    )


def vision(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an image tower."""
    if config.get("num_channels", 3) != 3:
        raise UserError("config.json: num_channels is not 3, but clipjax's images are RGB.")
    return dict(
        size=square(config["image_size"], "image_size"),
        patch=square(config["patch_size"], "patch_size"),
        **encoder(config),
    )


def vision_config(tower: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `vision`."""
    return encoder_config(tower) | dict(
        image_size=tower["size"], patch_size=tower["patch"], num_channels=3
    )


def text(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a text tower."""
    return dict(
        length=config["max_position_embeddings"],
        vocab_size=config["vocab_size"],
        **encoder(config),
    )


def text_config(tower: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `text`."""
    return encoder_config(tower) | dict(
        max_position_embeddings=tower["length"], vocab_size=tower["vocab_size"]
    )
