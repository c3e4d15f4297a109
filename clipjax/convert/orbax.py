"""clipjax's own checkpoints, parameter by parameter: written and read without ever holding all of them."""

import asyncio
import functools
import math
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

# Bytes of one chunk on disk: what is written at a time, and what a device must read at least.
CHUNK = 32 * 2**20

# Bytes of parameters that are read together.
GROUP = 512 * 2**20


class _Handler(ocp.type_handlers.NumpyHandler):
    """Writes `Tensor`s: while one is written the next one is read, and no more than these two are in memory."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._locks: tuple[asyncio.Semaphore, asyncio.Lock] | None = None

    async def _open_and_write(self, value: Any, tspec: Any, ts_context: Any) -> None:
        if self._locks is None:
            self._locks = asyncio.Semaphore(2), asyncio.Lock()  # inside the loop that uses them
        here, reading = self._locks
        async with here:
            async with reading:
                array = await asyncio.to_thread(value.read)
            await super()._open_and_write(array, tspec, ts_context)


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
        # Weights hardly shrink: compression costs more time than it saves.
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False)
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


class _Reader:
    """Reads the parameters of one checkpoint, a group of neighbours at a time: each read costs a fixed time too."""

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self.leaves = rules.paths(checkpoint.parameter_metadata(folder))
        self._averaged = checkpoint.averaged_paths(folder)
        self._group: dict[str, jax.Array] = {}

    def read(self, path: str) -> np.ndarray:
        """The parameter at `path`, its average if there is one."""
        if path not in self._group:
            self._group = {}  # gone before the next ones come
            self._group = self._restore(self._neighbours(path))
        return np.asarray(self._group[path])

    def _neighbours(self, path: str) -> list[str]:
        """The parameters from `path` on that have room in `GROUP` bytes; at least that one."""
        names = list(self.leaves)
        chosen, total = [], 0
        for name in names[names.index(path) :]:
            leaf = self.leaves[name]
            total += math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
            if chosen and total > GROUP:
                break
            chosen.append(name)
        return chosen

    def _restore(self, names: list[str]) -> dict[str, jax.Array]:
        one = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        wanted = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one)
            for name, leaf in ((n, self.leaves[n]) for n in names)
        }
        averages = {name: w for name, w in wanted.items() if name in self._averaged}
        others = {name: w for name, w in wanted.items() if name not in self._averaged}
        found: dict[str, jax.Array] = {}
        if others:
            found |= checkpoint.read_some(self._folder, others)
        if averages:
            found |= checkpoint.read_average(self._folder, averages)
        return found


def open_params(folder: epath.Path) -> dict[str, Tensor]:
    """The parameters of the checkpoint directory `folder`, averages (EMA) in place of what they average."""
    reader = _Reader(folder)
    return {
        path: Tensor(tuple(leaf.shape), np.dtype(leaf.dtype), functools.partial(reader.read, path))
        for path, leaf in reader.leaves.items()
    }


def check_new(target: epath.Path) -> None:
    """Refuses to write where something is."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{str(target)!r} exists already; choose another --target, or remove it.")


def shardings_of(config: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Path -> sharding of the parameters of a config's model on a mesh."""
    from clipjax.convert.shapes import abstract_params
    from clipjax.models import make_model

    abstract = abstract_params(make_model(config["model"]), config, mesh)
    return {path: leaf.sharding for path, leaf in rules.paths(abstract).items()}
