"""Loading models of transformers, for captioners and detectors."""

from pathlib import Path
from typing import Any

from clipjax.errors import UserError
from experiments.cloc.vesl.guard import first_line


def load_model(
    what: str, processor: str, model: str, name: str, dtype: str, device: str | None
) -> tuple[Any, Any]:
    """(processor, model) of a checkpoint, the model on its device in evaluation mode.

    Args:
      what: the kind of captioner or detector, for the message.
      processor, model: names of classes of transformers.
      name: a folder, or a name on the hub.
      dtype: torch's name of the weights' type.
      device: torch's, such as "cuda"; None: a GPU if there is one.

    Raises:
      UserError: transformers, the checkpoint or the device is not there, no such dtype, or weights of another model.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"{what!r} needs PyTorch and transformers: pip install 'clipjax[vesl-models]'."
        ) from error
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"{what!r} takes dtype float32, bfloat16 or float16, not {dtype!r}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        made = getattr(transformers, processor).from_pretrained(name)
        loaded, info = getattr(transformers, model).from_pretrained(
            name,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
        loaded.to(device)
    # What transformers raises for no checkpoint, and torch for no device.
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"The checkpoint {name!r} cannot be loaded on {device!r}: {first_line(error)}"
        ) from error
    # transformers only warns of weights that it had to draw at random.
    lacking = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if lacking:
        raise UserError(
            f"The checkpoint {name!r} is of another model than {what!r} needs: {len(lacking)} of the weights are "
            f"missing or have another shape, such as {lacking[0]}."
        )
    return made, loaded.eval()


def files_of(name: str) -> dict[str, int] | None:
    """File -> its bytes of a folder with a checkpoint, by which another one in its place is noticed.

    Returns:
      None for a name on the hub.
    """
    folder = Path(name)
    if not folder.is_dir():
        return None
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}
