"""Devices that are not there, for compiling ahead of time: `v5e:16x16`, `v5e-256`, `h100:64`, `cpu:8`.

For TPUs it takes the libtpu wheel, for GPUs the CUDA plugin's wheels; neither needs the hardware.
"""

import contextlib
import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax

from clipjax.cost.hardware import DEVICES, Device
from clipjax.errors import UserError
from clipjax.registry import nearest

# Shapes of whole slices by number of chips. A v5p pod counts TensorCores in Google's names, two a chip; here, chips.
_SHAPES = {
    2: {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    3: {
        **{4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"},
        **{256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16"},
    },
}
_AXES = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
_GPUS = ("a100", "h100", "h200")


# Keeps libtpu from asking for the metadata of a TPU, and lets several processes compile at once.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


class Topology(NamedTuple):
    """Named devices.

    Attributes:
      name: as it is printed, such as "v5e:16x16 x 2 slices".
      platform: "tpu", "gpu" or "cpu".
      devices: to make a mesh of.
      figures: of one device; None for a CPU.
    """

    name: str
    platform: str
    devices: tuple[Any, ...]
    figures: Device | None


def prepare(text: str) -> None:
    """Sets what must be set before JAX starts. Call it before anything else touches JAX."""
    # This machine's own devices are not wanted; and a libtpu without a TPU would make JAX wait for one.
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    cpus = re.fullmatch(r"cpu:([1-9]\d*)", text)
    if cpus:
        with contextlib.suppress(
            RuntimeError
        ):  # JAX has started: `find` tells if there are too few
            jax.config.update("jax_num_cpu_devices", int(cpus[1]))


def find(text: str, slices: int = 1) -> Topology:
    """The devices that a name means.

    Args:
      text: "KIND:SHAPE" or "KIND:COUNT" ("KIND-COUNT" too): TPU chips, GPUs, or CPU devices.
      slices: how many such slices of a TPU, joined by the data-centre network.

    Raises:
      UserError: a name that means nothing, or a wheel that is missing.
    """
    match = re.fullmatch(r"([a-z0-9]+)[:-](\d+(?:x\d+)*)", text)
    kinds = (*_AXES, *_GPUS, "cpu")
    if not match or match[1] not in kinds:
        kind = re.split("[:-]", text)[0]
        raise UserError(
            f"There is no topology {text!r}{nearest(kind, kinds)}; write KIND:SHAPE or KIND:COUNT, such as "
            "v5e:16x16, v5p:512, h100:8 or cpu:8."
        )
    kind, shape = match.groups()
    if slices < 1 or (slices > 1 and kind not in _AXES):
        raise UserError(f"--slices={slices} makes sense for TPUs only, and from 1 on.")
    if kind == "cpu":
        return _cpu(text, shape)
    return _gpu(kind, shape) if kind in _GPUS else _tpu(kind, shape, slices)


def _cpu(text: str, shape: str) -> Topology:
    if "x" in shape or len(jax.devices()) < int(shape):
        raise UserError(
            f"{text!r} needs {shape} simulated devices, but JAX has started with {len(jax.devices())}; give their "
            "number alone, in a command of its own."
        )
    return Topology(text, "cpu", tuple(jax.devices()[: int(shape)]), None)


def _tpu(kind: str, shape: str, slices: int) -> Topology:
    if not _installed("libtpu"):
        raise UserError(
            "Planning for TPUs needs their compiler, not the hardware: pip install 'clipjax[plan]'."
        )
    shapes = _SHAPES[_AXES[kind]]
    if "x" not in shape:
        if int(shape) not in shapes:
            raise UserError(
                f"There is no slice of {shape} {kind} chips in the table; give its shape, such as {kind}:"
                f"{shapes[64]}, or a count of {', '.join(map(str, shapes))} (chips, not TensorCores)."
            )
        shape = shapes[int(shape)]
    from jax.experimental import topologies

    more = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{kind}:{shape}", **more
        )
    except Exception as error:  # whatever libtpu says of a shape that it does not know
        reason = (str(error).strip().splitlines() or ["?"])[0][:200]
        raise UserError(
            f"The TPU compiler does not take the topology {kind}:{shape} x {slices}: {reason}"
        ) from error
    name = f"{kind}:{shape}" + (f" x {slices} slices" if slices > 1 else "")
    return Topology(name, "tpu", tuple(found.devices), DEVICES[kind])


def _gpu(kind: str, shape: str) -> Topology:
    if "x" in shape:
        raise UserError(f"GPUs are given by their number, such as {kind}:8, not {shape}.")
    if not _installed("jax_plugins.xla_cuda13"):
        raise UserError(
            "Planning for GPUs needs the CUDA plugin of JAX, not the hardware: pip install 'clipjax[plan]'."
        )
    count, host = int(shape), DEVICES[kind].host
    if count > host and count % host:
        raise UserError(f"{count} GPUs are not whole hosts of {host}; give a multiple of {host}.")
    from jax.experimental import topologies

    found = topologies.get_topology_desc(
        platform="cuda",
        topology_name=kind,
        # slices x hosts x GPUs of a host
        topology=f"1x{max(1, count // host)}x{min(count, host)}",
        target_config=_target(kind),
    )
    return Topology(f"{kind}:{count}", "gpu", tuple(found.devices), DEVICES[kind])


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def _target(kind: str) -> str:
    """XLA's description of a GPU, written by hand from NVIDIA's data sheets and tuning guides."""
    figures = DEVICES[kind]
    hopper = kind != "a100"
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": 233_472 if hopper else 167_936,
        "threads_per_core_limit": 2048,
        "core_count": 132 if hopper else 108,
        "fpus_per_core": 128 if hopper else 64,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": round(figures.memory_bandwidth),
        "l2_cache_size": (50 if hopper else 40) * 2**20,
        "clock_rate_ghz": 1.83 if hopper else 1.41,
        "device_memory_size": round(figures.memory),
        "shared_memory_per_block_optin": 232_448 if hopper else 166_912,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
    }
    lines = "\n".join(f"  {name}: {value}" for name, value in device.items())
    capability = f"major: {9 if hopper else 8} minor: 0"
    return (
        f"gpu_device_info {{\n{lines}\n  cuda_compute_capability {{ {capability} }}\n}}\n"
        f'platform_name: "CUDA"\ndnn_version_info {{ major: 9 minor: 8 }}\ndevice_description_str: "{kind}"\n'
    )
