"""Checkpoints by their name on the Hugging Face hub: `hf-hub:OWNER/NAME`, `hf-hub:OWNER/NAME@REVISION`."""

from pathlib import Path

from clipjax.errors import UserError

PREFIX = "hf-hub:"

# Weights as safetensors (or torch files), configs and tokenizers; not TensorFlow's, Flax's and ONNX's copies.
_PATTERNS = ["*.json", "*.safetensors", "*.bin", "*.pt", "*.npz", "*.model", "*.txt"]
_IGNORED = ["tf_model*", "flax_model*", "*.onnx", "onnx/*", "*.msgpack", "training_args.bin"]


def local(path: str | Path) -> Path:
    """Where the files of `path` are: itself, or a downloaded copy if it is a name on the hub.

    Raises:
      UserError: huggingface_hub is not installed, there is no network, or no such repository.
    """
    name = str(path)
    if not name.startswith(PREFIX):
        return Path(path)
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    if repository.count("/") != 1:
        raise UserError(f"{name!r} is not a valid name on the hub; write hf-hub:OWNER/NAME.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"{name!r} is fetched with huggingface_hub; run: pip install huggingface_hub."
        ) from error
    kept = _PATTERNS
    try:
        listed = _files(repository, revision or None)
        if any(file.endswith(".safetensors") for file in listed):
            kept = [pattern for pattern in _PATTERNS if pattern not in ("*.bin", "*.pt")]
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=kept,
                ignore_patterns=_IGNORED,
            )
        )
    except Exception as error:  # The library raises many kinds, of its own and of what it uses.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name!r} cannot be fetched from the hub: {reason[:200]}") from error


def _files(repository: str, revision: str | None) -> list[str]:
    from huggingface_hub import list_repo_files

    return list_repo_files(repository, revision=revision)
