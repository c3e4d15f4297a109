"""Which kind of device a program is being made for."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

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
