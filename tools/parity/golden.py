"""What a parity golden holds, and how one is written: shapes of the weights, inputs, and what a library makes of them.

A golden is a JSON object:
  case, library {name: version}, architecture (the library's class);
  files {name: content}: what the library writes beside the weights;
  weights_file: the weights' own file, as the library or its authors name it;
  tensors {key: [dtype, shape] or [dtype, shape, fill]} in the file's order; values by `parity_weights.tensor`;
  inputs: images {key, shape} for `parity_weights.pixels`, text (token ids), text_mask; or patches, patch_mask and
    spatial_shapes ([height, width] in patches) for NaFlex;
  outputs: image_embedding and text_embedding [B][E], L2-normalised; logit_scale and logit_bias as stored; of single
    towers also the vector before normalisation, and the tokens of the first input.
"""

import contextlib
import importlib.metadata
import json
import pathlib
import struct
from typing import Any

import numpy as np
import torch

from tests.convert import parity_weights

Tensors = dict[str, list]
_DTYPES = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64", torch.int32: "I32"}


def versions(*distributions: str) -> dict[str, str]:
    """{distribution: version} of what made a golden; torch is always among them."""
    found = {name: importlib.metadata.version(name) for name in (*distributions, "torch")}
    return {name: version.split("+")[0] for name, version in found.items()}


def _fill(value: torch.Tensor) -> list:
    """What `parity_weights.tensor` needs to repeat an integer buffer."""
    flat = value.flatten()
    if (flat == flat[0]).all():
        return [flat[0].item()]
    if (value == torch.arange(value.shape[-1])).all():
        return ["arange"]
    raise ValueError(f"an integer buffer of shape {list(value.shape)} that no fill describes")


def describe(state: dict[str, torch.Tensor]) -> Tensors:
    """A state dict as a golden's `tensors`, in its order."""
    return {
        key: [
            _DTYPES[value.dtype],
            list(value.shape),
            *([] if value.is_floating_point() else _fill(value)),
        ]
        for key, value in state.items()
    }


def safetensors_order(path: pathlib.Path) -> list[str]:
    """Keys of a safetensors file in the order of its header."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return [key for key in header if key != "__metadata__"]


def filled(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The state dict that `tensors` describes, with its weights."""
    arrays = parity_weights.tensors({"tensors": tensors})
    return {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}


def load(model: torch.nn.Module, tensors: Tensors) -> torch.nn.Module:
    """Puts the weights of `tensors` into `model`, all of them, for inference in float32."""
    model.load_state_dict(filled(tensors), strict=True)
    return model.float().eval()


def images(count: int, size: int) -> dict[str, Any]:
    """Inputs entry of `count` square images."""
    return {"key": f"images of {size}", "shape": [count, size, size, 3]}


def nchw(spec: dict[str, Any]) -> torch.Tensor:
    """The images of an inputs entry as torch wants them."""
    return torch.from_numpy(parity_weights.pixels(**spec)).permute(0, 3, 1, 2).contiguous()


def clip_text(vocabulary: int, length: int) -> list[list[int]]:
    """Three texts as CLIP's tokenizer makes them: start, words, end, zeros; the end is the largest id."""
    words = [[5, 17, 3, 29, 11], [8], list(range(4, 4 + length - 2))]
    ids = [[vocabulary - 2, *some[: length - 2], vocabulary - 1] for some in words]
    return [row + [0] * (length - len(row)) for row in ids]


def padded(words: list[list[int]], length: int, pad: int) -> list[list[int]]:
    """Texts filled up with `pad` on the right."""
    return [row + [pad] * (length - len(row)) for row in words]


def siglip_text(length: int, pad: int) -> list[list[int]]:
    """Three texts as SigLIP's tokenizers make them: no start, an end (1), and `pad` (1; SigLIP 2: 0) to the length."""
    return padded([[7, 30, 12, 1], [9, 1], [*range(20, 19 + length), 1]], length, pad)


def mask(text: list[list[int]], pad: int) -> list[list[int]]:
    """1 where a text has a token that is not `pad`."""
    return [[int(token != pad) for token in row] for row in text]


def rounded(value: torch.Tensor) -> Any:
    """Nested lists of numbers with eight significant digits: more than float32 carries."""
    if value.ndim == 0:
        return float(f"{value.item():.8g}")
    return [rounded(row) for row in value]


def outputs(
    image: torch.Tensor | None = None,
    text: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    **more: torch.Tensor,
) -> dict[str, Any]:
    """A golden's `outputs`: the towers' vectors are normalised here; `more` is taken as it is.

    Raises:
      ValueError: when two inputs come out nearly the same, so that a test would pass whatever it was given.
    """
    result = {}
    for name, vectors_BxE in (("image_embedding", image), ("text_embedding", text)):
        if vectors_BxE is None:
            continue
        unit_BxE = torch.nn.functional.normalize(vectors_BxE.float(), dim=-1)
        cosine = (unit_BxE @ unit_BxE.T).fill_diagonal_(0).max().item()
        if not cosine < 0.995:
            raise ValueError(f"{name}: two inputs have cosine {cosine:.4f}")
        result[name] = rounded(unit_BxE)
    for name, value in {"logit_scale": scale, "logit_bias": bias, **more}.items():
        if value is not None:
            result[name] = rounded(value.detach().float())
    return result


def _lines(value: Any, depth: int) -> str:
    """JSON with one line for each entry down to `depth` levels of objects."""
    if depth == 0 or not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    rows = [f"{json.dumps(key)}: {_lines(item, depth - 1)}" for key, item in value.items()]
    return "{\n" + ",\n".join(rows) + "\n}"


def write(golden: dict[str, Any], folder: pathlib.Path) -> pathlib.Path:
    """Writes `folder`/CASE.json."""
    path = folder / f"{golden['case']}.json"
    path.write_text(_lines(golden, 2) + "\n")
    return path


@contextlib.contextmanager
def repeatable():
    """One thread and deterministic kernels, without gradients, so that files come out the same again."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with torch.no_grad():
        yield
