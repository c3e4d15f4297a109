"""Weights and images as functions of their names, for the parity goldens; numpy alone.

`tools/make_parity_goldens.py` puts these numbers into the real libraries' models and writes down what the models say;
a test puts the same numbers into a file of the same format, converts it, and compares. So no weights are stored.
The raw bits of PCG64 are the same in every numpy, and every step after them is one exact or correctly rounded
operation.
"""

import math
import re
import zlib
from collections.abc import Sequence

import numpy as np

DTYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64, "I32": np.int32}

_SCALE = re.compile(r"(^|\.)logit_scale$|^(params/)?t$")
_BIAS = re.compile(r"(^|\.)logit_bias$|^(params/)?b$")
_PATCH = re.compile(r"patch_embed\w*\.(proj\w*\.)?(weight|bias)$|img/embedding/(kernel|bias)$")
_TABLE = re.compile(
    r"(token_embedding|word_embeddings|position_embeddings?|token_type_embeddings)\.weight$"
    r"|(positional_embedding(_res)?|class_embedding|pos_embed|cls_token|cls_emb)$"
    r"|(register_tokens|reg_token|mask_token|position_embeddings)$"
    r"|(pos_embedding|Embed_0/embedding|/cls)$"
)
_QUERY = re.compile(r"(probe|latent|attn_pool\.query|class_pos_emb)$")
# Right-multiplied as they are stored: [in, out].
_IN_OUT = re.compile(r"(^|\.)(text_projection|proj)$")


def uniform(key: str, count: int) -> np.ndarray:
    """Float64 [count] in [-1/2, 1/2), multiples of 2^-24, from `key` alone."""
    raw = np.random.PCG64(zlib.crc32(key.encode())).random_raw(count)
    return (raw >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5


def fan_in(key: str, shape: Sequence[int]) -> int:
    """How many inputs each output of a matrix or kernel sums over; torch's and Flax's layouts."""
    if key.endswith("kernel"):  # Flax; under `encoderblock/` with a leading axis of layers
        shape = shape[1:] if "encoderblock/" in key else shape
        heads_last = re.search(r"(query|key|value)/kernel$", key)
        return shape[0] if heads_last else math.prod(shape[:-1])
    return shape[0] if _IN_OUT.search(key) else math.prod(shape[1:])


def _is_patch(key: str, shape: Sequence[int]) -> bool:
    """A patch embedding: under OpenAI's names it is called conv1, as the first 3 × 3 convolution of a ResNet is."""
    return bool(_PATCH.search(key)) or (key.endswith("visual.conv1.weight") and shape[-1] > 3)


def spread(key: str, shape: Sequence[int]) -> tuple[float, float]:
    """(width, centre) of a tensor's uniform numbers, by its key.

    Embeddings are small, as trained ones are, so that the first norm tells one epsilon from another; later matrices
    keep activations near one, with attention far from flat.
    """
    end = re.split(r"[./]", key)[-1]
    patch = _is_patch(key, shape)
    if _SCALE.search(key):
        return 0.5, 2.0
    if _BIAS.search(key):
        return 1.0, -5.0
    if end == "running_var":
        return 1.0, 1.0
    if re.fullmatch(r"gamma(_\d)?|lambda1", end):
        return 0.5, 0.75
    if _QUERY.search(key):
        return 3.5, 0.0
    if _TABLE.search(key):
        return 0.08, 0.0
    if end in ("bias", "running_mean") or end.endswith("_bias"):
        return (0.02 if patch else 0.5), 0.0
    if end == "scale" or len(shape) == 1:
        return 1.0, 1.0
    return (0.2 if patch else 4.5) / math.sqrt(fan_in(key, shape)), 0.0


def _filters(numbers: np.ndarray) -> np.ndarray:
    """A ResNet's convolutions [out, in, h, w], each row of inputs summing to zero.

    Otherwise the mean of what a ReLU lets through grows from layer to layer, until all images look the same.
    """
    return numbers - np.roll(numbers, 1, axis=1)


def tensor(key: str, shape: list[int], dtype: str, fill: float | str | None = None) -> np.ndarray:
    """The tensor that a file holds under `key`; `dtype` is "F32", "F16", "I64" or "I32".

    `fill` is for what is not a weight: a number everywhere, or "arange", 0, 1, … along the last axis.
    """
    if fill == "arange":
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(DTYPES[dtype])
    if fill is not None:
        return np.full(shape, fill, DTYPES[dtype])
    width, centre = spread(key, shape)
    numbers = uniform(key, math.prod(shape)).reshape(shape)
    if len(shape) == 4 and key.endswith("weight") and not _is_patch(key, shape):
        numbers = _filters(numbers)
    return (numbers * width + centre).astype(np.float32).astype(DTYPES[dtype])


def tensors(golden: dict) -> dict[str, np.ndarray]:
    """All tensors of a golden's weights file (or files), in the file's order."""
    return {
        key: tensor(key, shape, dtype, *fill)
        for key, (dtype, shape, *fill) in golden["tensors"].items()
    }


def pixels(key: str, shape: list[int]) -> np.ndarray:
    """Float32 `shape` in [-2, 2): images as a model takes them, after mean and deviation.

    Noise around one colour an image, so that what pools over a whole image still tells them apart.
    """
    colours = uniform(f"{key}, colours", shape[0] * shape[-1])
    colours = colours.reshape(shape[0], *[1] * (len(shape) - 2), shape[-1])
    noise = uniform(key, math.prod(shape)).reshape(shape)
    return ((noise + colours) * 2).astype(np.float32)


def images(golden: dict) -> np.ndarray:
    """The golden's images, float32 [B, H, W, 3]."""
    return pixels(**golden["inputs"]["images"])


def patches(golden: dict) -> np.ndarray:
    """The golden's NaFlex patches, float32 [B, N, 3·p·p] in order (row, column, channel); zero where masked."""
    mask_BxN = np.asarray(golden["inputs"]["patch_mask"], np.float32)
    return pixels(**golden["inputs"]["patches"]) * mask_BxN[:, :, None]
