"""Hugging Face's shards: several weight files, and a JSON index that says which tensor is in which."""

from pathlib import Path

from clipjax.convert.files.mapped import MappedFile
from clipjax.convert.files.reader import open_tensors
from clipjax.convert.files.safetensors_reader import MAX_HEADER, parse_json
from clipjax.convert.files.tensor_file import Refused, Tensor, TensorFile, check_key, shown
from clipjax.errors import UserError


def open_sharded(index_path: str | Path) -> TensorFile:
    """Opens the shards that an index names, which lie beside it.

    Args:
        index_path: `model.safetensors.index.json`, `pytorch_model.bin.index.json` or the like.

    Returns:
        The tensors of all shards; its `path` is that of the index.

    Raises:
        UserError: the index is damaged, names files in other places or that are not there, or does not list exactly
            the tensors of its shards; or a shard is refused.
    """
    try:
        names = _read_index(MappedFile(index_path))
        return _open(Path(index_path), names)
    except Refused as error:
        raise UserError(f"{index_path} {error}.") from error


def _read_index(file: MappedFile) -> dict[str, str]:
    """Key -> name of its shard."""
    if len(file) > MAX_HEADER:
        raise Refused(f"is no index of shards: it has more than {MAX_HEADER} bytes")
    names = parse_json(file.take(0, len(file))).get("weight_map")
    if type(names) is not dict or not names:
        raise Refused('is no index of shards: it has no "weight_map"')
    for count, (key, name) in enumerate(names.items()):
        check_key(key, count)
        if type(name) is not str or not name or name in (".", "..") or set(name) & set("/\\:\0"):
            raise Refused(f"names the shard {shown(name)}, which is no plain file name")
    return names


def _open(index: Path, names: dict[str, str]) -> TensorFile:
    shards: dict[str, TensorFile] = {}
    for name in dict.fromkeys(names.values()):
        if not (index.parent / name).exists():
            raise Refused(f"names the shard {shown(name)}, which is not beside it; download it too")
        shards[name] = open_tensors(index.parent / name)
    kinds = {shard.kind for shard in shards.values()}
    if len(kinds) > 1:
        raise Refused(f"has shards of several formats: {', '.join(sorted(kinds))}")
    for name, shard in shards.items():
        for key in shard.tensors:
            if names.get(key) != name:
                raise Refused(f"does not list {shown(key)}, which its shard {shown(name)} has")
    tensors: dict[str, Tensor] = {}
    for key, name in names.items():
        if key not in shards[name].tensors:
            raise Refused(f"lists {shown(key)}, which its shard {shown(name)} does not have")
        tensors[key] = shards[name].tensors[key]
    return TensorFile(index, kinds.pop(), tensors)
