"""Shared set-up: eight simulated CPU devices and a compile cache outside the checkout."""

import os
import tempfile
from pathlib import Path

import pytest

# JAX reads most of these when it is imported.
os.environ["JAX_PLATFORMS"] = "cpu"
# Programs run for milliseconds here: what LLVM gains by optimising them is less than the time it takes.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
_cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "clipjax-tests" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / "clipjax-matplotlib"))

from clipjax.plan.topology import ENVIRONMENT  # noqa: E402
from clipjax.platform import settle_simulated_devices  # noqa: E402

settle_simulated_devices()
os.environ |= ENVIRONMENT


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """Workdir of a finished run of tests/tiny_config.py: checkpoints at 16 and 32 samples. Not to be changed."""
    from clipjax.cli import main

    workdir = tmp_path_factory.mktemp("tiny")
    config = Path(__file__).parent / "tiny_config.py"
    assert main(["train", f"--config={config}", f"--workdir={workdir}"]) == 0
    return workdir
