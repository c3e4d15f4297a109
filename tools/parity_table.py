"""The parity matrix of docs/checkpoints.md: every golden converted, compared, and converted back.

    python tools/parity_table.py        prints Markdown; about two minutes on two cores, without torch

tests/convert/test_parity.py holds the same comparisons to 1e-5 and to the last bit.
"""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from clipjax.convert.command import convert
from clipjax.convert.folders import open_weights
from clipjax.convert.source import Source, open_source
from clipjax.models import make_model
from tests.convert.parity_cases import GOLDENS, Golden, lay_out, register_timm


class Patch:
    """The one method of pytest's monkeypatch that the cases use."""

    def setattr(self, where: object, name: str, value: object) -> None:
        """Sets an attribute."""
        setattr(where, name, value)


def difference(source: Source, golden: Golden) -> float:
    """The largest difference of any embedding."""
    model = make_model(source.config.model)
    params = {p: jnp.asarray(t.read()).astype(jnp.float32) for p, t in source.params.items()}
    tree = {"params": unflatten_dict(params, sep="/")}
    outputs = jax.jit(lambda p, b: model.apply(p, b))(tree, golden.batch())
    wanted = golden.embeddings().items()
    return max(float(np.abs(np.asarray(outputs[field]) - value).max()) for field, value in wanted)


def back(path: Path, golden: Golden, folder: Path) -> tuple[int, list[str]]:
    """(tensors that came back bit for bit, the others)."""
    with contextlib.redirect_stdout(io.StringIO()):
        convert(str(path), str(folder / "ours"), options=golden.options())
        convert(str(folder / "ours"), str(folder / "back"), to=golden.format)
    original, written = open_weights(path).tensors, open_weights(folder / "back").tensors
    same, others = 0, []
    for key, tensor in original.items():
        if key in written and np.array_equal(tensor.read(), written[key].read()):
            same += 1
        else:
            others.append(key)
    return same, others


def main() -> None:
    """Prints the table."""
    print("| format | case | largest difference | back, bit for bit | not written back as it was |")
    print("|---|---|---|---|---|")
    for name, golden in GOLDENS.items():
        register_timm(golden, Patch())
        with tempfile.TemporaryDirectory() as folder:
            path = lay_out(golden, Path(folder) / "theirs")
            found = difference(open_source(path, options=golden.options()), golden)
            same, others = back(path, golden, Path(folder))
        case = name.removeprefix(golden.format).strip("_") or name
        kinds = sorted({_kind(key) for key in others})
        print(
            f"| {golden.format} | {case} | {found:.1e} | {same} | {', '.join(kinds)} |", flush=True
        )


def _kind(key: str) -> str:
    """A short name of what does not come back."""
    if key.startswith("text_decoder."):
        return "`text_decoder.*`"
    return f"`{key.split('.')[-1]}`" if "pooler" not in key else "`pooler.*`"


if __name__ == "__main__":
    main()
