"""What `clipjax convert` is told on the command line."""

import contextlib
import math
import re

import jax

from clipjax.errors import UserError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def byte_count(text: str | None) -> int | None:
    """A size such as 5GB, 500MB or 1000000, in bytes.

    Raises:
      UserError: it is none.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    count = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if count < 1:
        raise UserError(f"--max-shard-size={text!r} is not a valid size; write 5GB or 500MB.")
    return count


def mesh_sizes(text: str | None) -> dict[str, int] | None:
    """The mesh of `fsdp=8` or `fsdp=4,tensor=2`. So many CPU devices are simulated, as none of them computes.

    To be called before JAX has looked for devices.

    Raises:
      UserError: it is no list of axes and sizes.
    """
    if text is None:
        return None
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if not size.strip().isdigit() or int(size) < 1:
            raise UserError(f"--mesh={text!r} should be AXIS=SIZE,..., such as fsdp=8.")
        sizes[axis.strip()] = int(size)
    with contextlib.suppress(RuntimeError):  # JAX has started: what there is must do
        jax.config.update("jax_num_cpu_devices", math.prod(sizes.values()))
    return sizes
