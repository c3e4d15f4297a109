"""Figures of devices, each from its vendor's documents. The only table of them."""

from typing import NamedTuple


class Device(NamedTuple):
    """One device as JAX sees it.

    Attributes:
      flops: dense bfloat16 peak, FLOP/s.
      memory: bytes that a program may use.
      memory_bandwidth: bytes/s.
      link: bytes/s that a device receives over the fast network (ICI, one torus axis, both directions; NVLink).
      dcn: bytes/s that a device receives over the data-centre network, its share of its host's.
      host: devices of one host.
      source: where the figures are from.
    """

    flops: float
    memory: float
    memory_bandwidth: float
    link: float
    dcn: float
    host: int
    source: str


_TPU = "cloud.google.com/tpu/docs/{}; memory: what the compiler allows"
_GIB = 2**30

# A chip of v4 has two cores that JAX, ahead of time, sees as two devices; so has one of tpu7x.
DEVICES = {
    "v4": Device(137.5e12, 15.25 * _GIB, 614e9, 100e9, 3.1e9, 8, _TPU.format("v4")),
    "v5e": Device(197e12, 15.75 * _GIB, 819e9, 100e9, 3.125e9, 8, _TPU.format("v5e")),
    "v5p": Device(459e12, 95.74 * _GIB, 2765e9, 200e9, 6.25e9, 4, _TPU.format("v5p")),
    "v6e": Device(918e12, 31.25 * _GIB, 1640e9, 200e9, 12.5e9, 8, _TPU.format("v6e")),
    "tpu7x": Device(1153.5e12, 94.75 * _GIB, 3690e9, 200e9, 6.25e9, 8, _TPU.format("tpu7x")),
    # NVLink: half of the bidirectional figure. Network: one 400 (A100: 200) Gbit/s adapter a GPU, as in DGX.
    "a100": Device(312e12, 80e9, 2039e9, 300e9, 25e9, 8, "NVIDIA A100 80GB SXM data sheet"),
    "h100": Device(989.4e12, 80e9, 3350e9, 450e9, 50e9, 8, "NVIDIA H100 SXM data sheet"),
    "h200": Device(989.4e12, 141e9, 4800e9, 450e9, 50e9, 8, "NVIDIA H200 SXM data sheet"),
}

# What JAX calls a device that is there. An H100 of another form (PCIe, NVL) is slower and has no entry.
KINDS = {
    "NVIDIA A100": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5p": "v5p",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def peak(kind: str) -> float | None:
    """FLOP/s in bfloat16 of what JAX calls `kind`; None if not known (a CPU, say)."""
    matches = [name for name in KINDS if kind.startswith(name)]
    return DEVICES[KINDS[max(matches, key=len)]].flops if matches else None
