"""Makes tests/convert/golden/files/: small weight files that torch wrote, and what torch reads in them.

    pip install "clipjax[reference]"
    python tools/make_file_goldens.py

`expected.json` has, for each file, every tensor of the model with its dtype, shape and bytes (hexadecimal, C order).
"""

import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

GOLDEN = Path(__file__).parents[1] / "tests" / "convert" / "golden" / "files"


class Tower(nn.Module):
    """Two layers, buffers of numbers that a config would hold, and attributes of every plain kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        self.register_buffer("input_resolution", torch.tensor(224))
        self.register_buffer("counts", torch.tensor([[1, 2], [3, 4]]))
        self.first = self.layers[0].weight
        self.width = 6
        self.title = "tower"
        self.sizes = [4, 6, 3]
        self.ratios = {"mlp": 1.5}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 4] -> [B, 3]."""
        return self.layers(x) * self.logit_scale.exp() + self.width + len(self.sizes)


def state_dict() -> OrderedDict:
    """Tensors of every dtype and layout."""
    x = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    state = OrderedDict(
        plain=x,
        tied=x,
        transposed=x.T,
        column=x[:, 2],
        corner=x[1:3, 2:5],
        half=(x[:2] - 1).half(),
        brain=(x[:2] - 1).bfloat16(),
        double=x[0].double(),
        float8=x[0].to(torch.float8_e4m3fn),
        float8_wide=x[0].to(torch.float8_e5m2),
        long=torch.tensor([-(2**40), 2**40]),
        word=torch.tensor([1, 65535], dtype=torch.uint16),
        byte=torch.arange(5, dtype=torch.uint8),
        boolean=torch.tensor([True, False, True]),
        scalar=torch.tensor(2.6592),
        empty=torch.empty(0, 3),
        parameter=nn.Parameter(torch.tensor([1.0, -1.0])),
    )
    state["layer.norm/ß"] = torch.tensor([3], dtype=torch.int32)
    return state


def training() -> dict:
    """A checkpoint as open_clip writes it: a wrapped model and the state of AdamW after a step."""
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(visual=nn.Linear(4, 3), norm=nn.BatchNorm1d(3)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60])
    return {
        "epoch": 7,
        "name": "ViT-B-32",
        "best": 0.25,
        "sizes": torch.Size([3, 4]),
        "dtype": torch.bfloat16,
        "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "scaler": {"scale": torch.tensor(65536.0), "growth_factor": 2.0},
        "lr_scheduler": scheduler.state_dict(),
    }


def without_debug_info(path: Path) -> None:
    """Removes from a TorchScript archive what names the files on this machine."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            if not name.endswith(".debug_pkl"):
                archive.writestr(zipfile.ZipInfo(name), data)


def described(state: dict[str, torch.Tensor]) -> dict[str, dict]:
    """Each tensor as JSON."""
    found = {}
    for key, tensor in state.items():
        data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        found[key] = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "bytes": data.hex(),
        }
    return found


def main() -> None:
    """Writes the files and what is in them."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    state = state_dict()
    torch.save(state, GOLDEN / "state_dict.pt")
    torch.save(state, GOLDEN / "state_dict_protocol4.pt", pickle_protocol=4)
    # torch cannot read its newer dtypes back from the old format.
    old = {key: t for key, t in state.items() if not key.startswith(("float8", "word"))}
    torch.save(old, GOLDEN / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(training(), GOLDEN / "training.pt")
    torch.manual_seed(1)
    tower = Tower().half().eval()
    for name, module in (
        ("scripted.pt", torch.jit.script(tower)),
        ("traced.pt", torch.jit.trace(tower, torch.ones(2, 4).half())),
    ):
        torch.jit.save(module, GOLDEN / name)
        without_debug_info(GOLDEN / name)

    expected = {}
    for path in sorted(GOLDEN.glob("*.pt*")):
        if path.name in ("scripted.pt", "traced.pt"):
            expected[path.name] = described(torch.jit.load(path).state_dict())
        else:
            loaded = torch.load(path, weights_only=False)  # it knows no other protocol than 2
            expected[path.name] = described(loaded.get("state_dict", loaded))
    (GOLDEN / "expected.json").write_text(
        json.dumps(expected, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
