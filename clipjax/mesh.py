"""The device mesh, and THE table from logical axis names to mesh axes.

Parameters and batches name their axes by meaning ("embed", "mlp", "batch", ...); only this file says which mesh axis
each meaning is split over. `data` splits the batch, `fsdp` splits the batch and the parameters, `tensor` splits heads,
MLPs and the vocabulary, `expert` splits experts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from clipjax.errors import UserError

AXES = ("data", "fsdp", "tensor", "expert")

# Logical axis -> mesh axis. What is not listed is not split.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
    # Rows of a table of class centres, whose axes are ("class", None): each device has its own.
    ("class", ("data", "fsdp")),
    ("expert", "expert"),
)


# Parameters that stay whole are worth a word from so many bytes on.
LARGE = 16 * 2**20


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices with the axes of `AXES`.

    Args:
      sizes: axis -> size; one may be -1 and takes what is left; what is not named is 1. None: all devices on `data`.
      devices: the devices to use, default all of all processes.

    Raises:
      UserError: an unknown axis, two -1, or sizes that do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": -1} if sizes is None else dict(sizes)
    for axis in sizes:
        if axis not in AXES:
            raise UserError(f"The mesh has no axis {axis!r}; its axes are {', '.join(AXES)}.")
        if isinstance(sizes[axis], bool) or not isinstance(sizes[axis], int):
            raise UserError(f"config.mesh.{axis} must be a whole number, not {sizes[axis]!r}.")
    shape = [sizes.get(axis, 1) for axis in AXES]
    text = ", ".join(f"{a}={s}" for a, s in zip(AXES, shape, strict=True))
    if shape.count(-1) > 1 or any(s < 1 and s != -1 for s in shape):
        raise UserError(f"Mesh sizes must be positive, and at most one may be -1, but got {text}.")
    known = math.prod(s for s in shape if s != -1)
    if -1 in shape:
        shape[shape.index(-1)] = len(devices) // known
    if math.prod(shape) != len(devices):
        raise UserError(
            f"The mesh {text} does not fill the {len(devices)} device(s) there are; "
            "change config.mesh so that the sizes multiply to that number."
        )
    return Mesh(_arranged(devices, shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(devices: list[Any], shape: list[int]) -> np.ndarray:
    """Devices in the mesh's shape: on TPUs, what is near on the mesh is near in the machine.

    Slices lie along `data` if their number divides it: then gradients (and the losses' texts) cross the network between
    them, but no parameters and no activations.
    """
    in_order, slices = np.array(devices).reshape(shape), _slices(devices)
    if devices[0].platform != "tpu" or (slices > 1 and shape[0] % slices):
        return in_order
    inside = (shape[0] // slices, *shape[1:])
    how: dict[str, Any] = dict(devices=devices, allow_split_physical_axes=True)
    try:
        if slices > 1:
            return mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1, 1), **how)
        return mesh_utils.create_device_mesh(inside, **how)
    # A part of a slice, a shape that it cannot be cut into, or cores of a chip that JAX takes for devices (v4, tpu7x).
    except (NotImplementedError, ValueError, AssertionError):
        return in_order


def _slices(devices: Iterable[Any]) -> int:
    return len({getattr(d, "slice_index", None) or 0 for d in devices})


def network_domains(mesh: Mesh) -> np.ndarray:
    """For each device, in the mesh's shape, a number of the domain within which the network is fast.

    That is a slice of a TPU, a host of GPUs, and for CPUs a process.
    """
    tpu = mesh.devices.flat[0].platform == "tpu"
    name = "slice_index" if tpu else "process_index"
    return np.vectorize(lambda d: getattr(d, name, None) or 0, otypes=[int])(mesh.devices)


def network_groups(mesh: Mesh | AbstractMesh, axes: Sequence[str]) -> int:
    """Into how many equal runs of one domain each the devices along these axes fall; 1 if they do not."""
    if not isinstance(mesh, Mesh):
        return 1
    others = [a for a in mesh.axis_names if a not in axes]
    order = [mesh.axis_names.index(a) for a in (*axes, *others)]
    length = math.prod(mesh.shape[a] for a in axes)
    lines_NxK = network_domains(mesh).transpose(order).reshape(length, -1)
    groups = len(set(lines_NxK[:, 0].tolist()))
    if length % groups:
        return 1
    runs = lines_NxK.reshape(groups, length // groups, -1)
    return groups if (runs == runs[:, :1]).all() else 1


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Arrays with a leading batch axis are split over `data` and `fsdp`, whatever their rank."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the batch axis is cut."""
    return mesh.shape.get("data", 1) * mesh.shape.get("fsdp", 1)


def check_batch(batch_size: int, mesh: Mesh | AbstractMesh, grad_cache: int = 1) -> None:
    """Refuses a batch that does not divide over the mesh, and there into `grad_cache` micro-batches."""
    if grad_cache < 1:
        raise UserError(f"config.grad_cache must be at least 1, not {grad_cache}.")
    shards = batch_shards(mesh)
    if batch_size % shards:
        raise UserError(f"config.batch_size = {batch_size} does not divide over {shards} devices.")
    if batch_size % (shards * grad_cache):
        raise UserError(
            f"config.batch_size = {batch_size} does not divide into config.grad_cache = {grad_cache} micro-batches on "
            f"each of {shards} device(s); choose a multiple of {shards * grad_cache}."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(boxed: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Shardings of a tree of parameters with logical axis names (boxes of `nn.with_logical_partitioning`).

    A dimension that its mesh axes do not divide stays whole; `remarks` tells of it, and `clipjax show` prints what is
    split how. Returns a tree like `nn.unbox(boxed)`.
    """

    def sharding(leaf: Any, axes: list[tuple[str, ...]]) -> NamedSharding:
        entries = [
            _entry(names) if names and size % _parts(names, mesh) == 0 else None
            for size, names in zip(leaf.shape, axes, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*entries))

    leaves, tree = jax.tree.flatten(nn.unbox(boxed))
    return jax.tree.unflatten(tree, map(sharding, leaves, _wanted_axes(boxed)))


def remarks(boxed: Any, mesh: Mesh | AbstractMesh) -> list[str]:
    """What works, but not as a user may think: a sentence for each cause.

    Parameters that are held whole on devices that were meant to share them, from `LARGE` bytes on; and slices of a TPU
    that meet along another axis than `data`.

    Args:
      boxed: as for `parameter_shardings`.
      mesh: of the run.
    """
    odd: dict[tuple[str, ...], list[tuple[str, Any, int]]] = {}
    nameless = []
    leaves = jax.tree_util.tree_leaves_with_path(nn.unbox(boxed))
    for (path, leaf), axes in zip(leaves, _wanted_axes(boxed), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not any(axes) and _bytes(leaf) >= LARGE:
            nameless.append(f"{name} {list(leaf.shape)}")
        for size, names in zip(leaf.shape, axes, strict=True):
            if names and size % _parts(names, mesh):
                odd.setdefault(names, []).append((name, leaf, size))

    sentences = []
    for names, found in odd.items():
        parts, whole = _parts(names, mesh), sum(_bytes(leaf) for _, leaf, _ in found)
        if whole < LARGE:
            continue
        name, leaf, size = max(found, key=lambda f: _bytes(f[1]))
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        better = math.gcd(parts, *(s for *_, s in found))
        sentences.append(
            f"config.mesh.{'*'.join(names)} = {parts} does not divide {size} of {name} {list(leaf.shape)}{others}, so "
            f"that dimension stays whole: {whole / 1e9:.2f} GB a device instead of {whole / parts / 1e9:.2f}; "
            + (
                f"{better} would divide all of them."
                if better > 1
                else "nothing above 1 would divide all of them."
            )
        )
    if nameless and max(mesh.shape.get(a, 1) for a in ("fsdp", "tensor", "expert")) > 1:
        sentences.append(
            f"{', '.join(nameless)}: held whole by every device, since the module names no axis of it that "
            "clipjax/mesh.py splits; give it names with nn.with_logical_partitioning."
        )
    if isinstance(mesh, Mesh):
        slices = _slices(mesh.devices.flat)
        if mesh.shape["data"] % slices:
            sentences.append(
                f"config.mesh.data = {mesh.shape['data']} is not a multiple of the {slices} slices, so parameters and "
                "activations cross the slow network between them; make it one if you can."
            )
    return sentences


def _wanted_axes(boxed: Any) -> list[list[tuple[str, ...]]]:
    """For each parameter, the mesh axes that the table means each dimension to be split over."""
    specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), RULES)
    leaves, tree = jax.tree.flatten(nn.unbox(boxed))
    found = []
    for leaf, spec in zip(leaves, tree.flatten_up_to(specs), strict=True):
        entries = (*spec, *[None] * (leaf.ndim - len(spec)))
        found.append(
            [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in entries]
        )
    return found


def _entry(names: tuple[str, ...]) -> str | tuple[str, ...]:
    return names[0] if len(names) == 1 else names


def _parts(names: tuple[str, ...], mesh: Mesh | AbstractMesh) -> int:
    return math.prod(mesh.shape.get(name, 1) for name in names)


def _bytes(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the layout of an activation by logical axis names; does nothing when no mesh is set.

    Without such pins XLA may answer FSDP parameters by splitting activations along their width and gathering the
    batch. The mesh is the ambient one (`jax.set_mesh`). A dimension that does not divide is left to XLA; one without a
    mesh axis stays whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    entries = []
    for size, axis in zip(x.shape, axes, strict=True):
        target = dict(RULES).get(axis)
        names = () if target is None else (target,) if isinstance(target, str) else target
        parts = math.prod(mesh.shape[a] for a in names)
        entries.append(target if size % parts == 0 else PartitionSpec.UNCONSTRAINED)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))
