"""Loading models of transformers, for captioners and detectors."""

from typing import Any

from clipjax.errors import UserError


def load_model(what: str, processor: str, model: str, name: str, dtype: str) -> tuple[Any, Any]:
    """(processor, model) of a checkpoint, the model in evaluation mode.

    Args:
      what: the kind of captioner or detector, for the message.
      processor, model: names of classes of transformers.
      name: a folder, or a name on the hub.
      dtype: torch's name of the weights' type.

    Raises:
      UserError: transformers or the checkpoint is not there, or no such dtype.
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
    try:
        made = getattr(transformers, processor).from_pretrained(name)
        loaded = getattr(transformers, model).from_pretrained(name, dtype=getattr(torch, dtype))
    except (
        OSError,
        ValueError,
    ) as error:  # transformers' words for what cannot be reached or is no checkpoint
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"The checkpoint {name!r} cannot be loaded: {first}") from error
    return made, loaded.eval()


def where(device: str | None) -> str:
    """The device that is meant."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")
