"""Which kind of device a program is being made for."""

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

import jax

# Else XLA runs parts of a program that do not need each other at the same time. Simulated devices share one pool of
# threads, and when each of them waits in a collective for a device that has no thread left, none ever goes on.
ONE_AFTER_ANOTHER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
_SIMULATED = "xla_force_host_platform_device_count"

# Set while a model is traced for one micro-batch of the gradient cache, where it must not mix its samples.
IN_MICRO_BATCH: ContextVar[bool] = ContextVar("in a micro-batch", default=False)

_TARGET: ContextVar[str | None] = ContextVar("target platform", default=None)


def target_platform() -> str:
    """Where the program now being traced will run: "cpu", "gpu" or "tpu"; by default what this machine has."""
    return _TARGET.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Within it, programs are traced for `platform`, whatever devices this machine has.

    A function that was jitted before keeps its earlier trace: make the functions inside.
    """
    token = _TARGET.set(platform)
    try:
        yield
    finally:
        _TARGET.reset(token)


def settle_simulated_devices() -> None:
    """Keeps simulated CPU devices from waiting for each other for ever. Call it before JAX starts.

    It does something only where XLA_FLAGS asks for several devices, and a user's own choice there wins.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _SIMULATED in flags and ONE_AFTER_ANOTHER.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {ONE_AFTER_ANOTHER}"
