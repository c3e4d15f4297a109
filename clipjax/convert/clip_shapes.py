"""What a CLIP with OpenAI's names is, by the shapes of its tensors.

Shapes do not tell the number of heads (OpenAI's are 64 wide) nor the activation; a format knows these.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from clipjax.errors import UserError
from clipjax.models import image_section, model_section, text_section

HEAD_WIDTH = 64

Shapes = Mapping[str, tuple[int, ...]]


def clip_model(shapes: Shapes, *, quick_gelu: bool) -> ConfigDict:
    """The `model` section of a CLIP whose tensors have these shapes.

    Args:
      shapes: key -> shape.
      quick_gelu: the activation.

    Raises:
      UserError: a tensor that tells something is missing or of another rank.
    """
    activation = "quick_gelu" if quick_gelu else "gelu"
    try:
        text = _text(shapes, activation)
        image = _vit(shapes, activation) if "visual.proj" in shapes else _resnet(shapes)
        embed_dim = shapes["text_projection"][1]
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"These are not the weights of a whole CLIP with OpenAI's names: {error} is missing or misshapen."
        ) from error
    projection = "linear" if image.kind == "vit" else "none"
    return model_section(image, text, embed_dim=embed_dim, image_projection=projection)


def as_clips(model: Mapping[str, Any], what: str) -> ConfigDict:
    """What the files of such a format make of a model: a CLIP of OpenAI's in its sizes, whatever else it is.

    Args:
      model: a `model` section, of a ViT or a ResNet and a text transformer.
      what: the format, for the error.

    Raises:
      UserError: a width that is not a number of heads.
    """
    image, text = model["image"], model["text"]
    vit = image["kind"] == "vit"
    for name, tower in (("image", image), ("text", text)):
        if (vit or name == "text") and tower["width"] % HEAD_WIDTH:
            raise UserError(
                f"{what} has heads that are {HEAD_WIDTH} wide, and model.{name}.width = {tower['width']} is no "
                "multiple of that."
            )
    if vit:
        size = image["size"] // image["patch"] * image["patch"]
        tower = image_section(size=size, patch=image["patch"], **_encoder(image))
    else:
        tower = image_section(
            "resnet",
            size=image["size"] // 32 * 32,
            width=image["width"],
            layers=tuple(image["layers"]),
            output_dim=model["embed_dim"],
        )
    return model_section(
        tower,
        text_section(
            length=text["length"],
            vocab_size=text["vocab_size"],
            end_token=text["vocab_size"] - 1,
            **_encoder(text),
        ),
        embed_dim=model["embed_dim"],
        image_projection="linear" if vit else "none",
    )


def _encoder(tower: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        width=tower["width"],
        depth=tower["depth"],
        heads=tower["width"] // HEAD_WIDTH,
        mlp_ratio=4.0,  # a number in their code
        activation="quick_gelu",
    )


def layers(shapes: Shapes, pattern: str) -> int:
    """How many layers there are: one more than the highest number that the group of `pattern` matches."""
    numbers = [int(m.group(1)) for key in shapes if (m := re.match(pattern, key))]
    if not numbers:
        raise KeyError(pattern)
    return max(numbers) + 1


def _heads(width: int) -> int:
    if width % HEAD_WIDTH:
        raise UserError(
            f"A width of {width} is not a number of heads {HEAD_WIDTH} wide, as OpenAI's are; give an "
            "open_clip_config.json beside the file, or --model."
        )
    return width // HEAD_WIDTH


def _ratio(shapes: Shapes, width: int, blocks: str) -> float:
    """The MLP's width over the tower's, of the first block that has a plain MLP or an expert."""
    for key, shape in shapes.items():
        if re.match(blocks + r"\.\d+\.(mlp|experts\.\d+)\.c_fc\.weight", key):
            return shape[0] / width
    raise KeyError(blocks)


def _vit(shapes: Shapes, activation: str) -> ConfigDict:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    rows, _ = shapes["visual.positional_embedding"]
    grid = math.isqrt(rows - 1)
    if grid * grid != rows - 1:
        raise UserError(f"The {rows} positions of the image tower are not a square grid.")
    blocks = r"visual\.transformer\.resblocks"
    return image_section(
        size=grid * patch,
        patch=patch,
        width=width,
        depth=layers(shapes, blocks + r"\.(\d+)\."),
        heads=_heads(width),
        mlp_ratio=_ratio(shapes, width, blocks),
        activation=activation,
    )


def _resnet(shapes: Shapes) -> ConfigDict:
    width = shapes["visual.layer1.0.conv1.weight"][0]
    rows, _ = shapes["visual.attnpool.positional_embedding"]
    grid = math.isqrt(rows - 1)
    if grid * grid != rows - 1:
        raise UserError(f"The {rows} positions of the image tower are not a square grid.")
    return image_section(
        "resnet",
        size=grid * 32,
        width=width,
        layers=tuple(layers(shapes, rf"visual\.layer{s}\.(\d+)\.") for s in (1, 2, 3, 4)),
        output_dim=shapes["visual.attnpool.c_proj.weight"][0],
    )


def _text(shapes: Shapes, activation: str) -> ConfigDict:
    vocab_size, width = shapes["token_embedding.weight"]
    blocks = r"transformer\.resblocks"
    return text_section(
        length=shapes["positional_embedding"][0],
        vocab_size=vocab_size,
        width=width,
        depth=layers(shapes, blocks + r"\.(\d+)\."),
        heads=_heads(width),
        mlp_ratio=_ratio(shapes, width, blocks),
        activation=activation,
        end_token=vocab_size - 1,  # the highest id, as pooling at argmax(ids) wants it
    )
