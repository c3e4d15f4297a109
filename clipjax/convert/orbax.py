"""clipjax's own checkpoints, parameter by parameter: written and read without ever holding all of them."""

import asyncio
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from clipjax import checkpoint, rules
from clipjax.convert.files import Tensor
from clipjax.errors import UserError

# Bytes of one chunk on disk: what is compressed at a time, and what a device must read at least.
CHUNK = 64 * 2**20


class _Handler(ocp.type_handlers.NumpyHandler):
    """Writes `Tensor`s one after the other, so that only one is in memory."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._turn: asyncio.Lock | None = None

    async def _open_and_write(self, value: Any, tspec: Any, ts_context: Any) -> None:
        if self._turn is None:
            self._turn = asyncio.Lock()  # made inside the loop that uses it
        async with self._turn:
            await super()._open_and_write(value.read(), tspec, ts_context)


class _Lazy:
    """A `Tensor` with what Orbax asks of an array."""

    def __init__(self, tensor: Tensor):
        self.shape, self.dtype, self.read = tensor.shape, tensor.dtype, tensor.read
        self.ndim = len(tensor.shape)
        self.size = int(np.prod(tensor.shape, dtype=np.int64))
        self.nbytes = self.size * self.dtype.itemsize


def write(
    folder: epath.Path,
    params: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    shardings: Mapping[str, Any] | None = None,
) -> None:
    """Writes one checkpoint, whole or not at all.

    Args:
      folder: does not exist yet.
      params: path -> parameter.
      meta, tokenizer: the items of these names, see `clipjax.checkpoint`.
      shardings: path -> how it is split over devices, which then write it in the pieces that such a mesh reads. The
        parameters are in the memory of these devices then. None: parameter by parameter, in chunks that suit any mesh.
    """
    if shardings is None:
        registry = ocp.type_handlers.create_type_handler_registry((_Lazy, _Handler()))
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        flat = {path: _Lazy(tensor) for path, tensor in params.items()}
        how = {path: ocp.SaveArgs(chunk_byte_size=CHUNK) for path in flat}
        item = ocp.args.PyTreeSave(unflatten_dict(flat, sep="/"), unflatten_dict(how, sep="/"))
    else:
        handler = ocp.StandardCheckpointHandler()
        placed = {path: place(tensor, shardings[path]) for path, tensor in params.items()}
        item = ocp.args.StandardSave(unflatten_dict(placed, sep="/"))
    handlers = ocp.CompositeCheckpointHandler(
        params=handler, meta=ocp.JsonCheckpointHandler(), tokenizer=ocp.JsonCheckpointHandler()
    )
    with ocp.Checkpointer(handlers) as writer:
        writer.save(
            folder,
            args=ocp.args.Composite(
                params=item,
                meta=ocp.args.JsonSave(dict(meta)),
                tokenizer=ocp.args.JsonSave(dict(tokenizer)),
            ),
        )


def place(tensor: Tensor, sharding: jax.sharding.Sharding, dtype: Any = None) -> jax.Array:
    """A parameter on the devices of a mesh; each host reads it whole and keeps its devices' parts."""
    array = tensor.read()
    if dtype is not None and array.dtype != dtype:
        array = array.astype(dtype)
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def open_params(folder: epath.Path) -> dict[str, Tensor]:
    """The parameters of the checkpoint directory `folder`, averages (EMA) in place of what they average."""
    saved = checkpoint.parameter_metadata(folder)
    averaged = checkpoint.averaged_paths(folder)

    def read(path: str, leaf: Any) -> np.ndarray:
        one = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        wanted = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one)
        if path in averaged:
            return np.asarray(checkpoint.read_average(folder, {path: wanted})[path])
        return np.asarray(checkpoint.read_some(folder, {path: wanted})[path])

    return {
        path: Tensor(tuple(leaf.shape), np.dtype(leaf.dtype), lambda p=path, x=leaf: read(p, x))
        for path, leaf in rules.paths(saved).items()
    }


def check_new(target: epath.Path) -> None:
    """Refuses to write where something is."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{str(target)!r} exists already; choose another --target, or remove it.")


def shardings_of(model: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Path -> sharding of a `model` section's parameters on a mesh."""
    from clipjax.inference import abstract_params
    from clipjax.models import make_model

    abstract = abstract_params(make_model(model), model, mesh)
    return {path: leaf.sharding for path, leaf in rules.paths(abstract).items()}
