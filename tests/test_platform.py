"""For which platform programs are traced."""

import os

import jax
import jax.numpy as jnp
import pytest

from clipjax.models import compute_dtype
from clipjax.models.stems import Conv3x3
from clipjax.platform import (
    ONE_AFTER_ANOTHER,
    compiling_for,
    settle_simulated_devices,
    target_platform,
)


def test_the_target_is_this_machine_unless_told():
    assert target_platform() == "cpu" == jax.default_backend()
    with compiling_for("tpu"):
        with compiling_for("gpu"):
            assert target_platform() == "gpu"
        assert target_platform() == "tpu"
    assert target_platform() == "cpu"
    with pytest.raises(ZeroDivisionError), compiling_for("tpu"):
        _ = 1 / 0
    assert target_platform() == "cpu"


def test_models_are_made_for_the_target():
    image = jnp.zeros((1, 8, 8, 3))
    convolution = "conv_general_dilated"
    for platform, dtype in (("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")):
        with compiling_for(platform):
            assert compute_dtype("auto") == dtype
            assert compute_dtype("float16") == "float16"
            module = Conv3x3(4)
            params = jax.eval_shape(module.init, jax.random.key(0), image)
            program = str(jax.make_jaxpr(lambda p, x, m=module: m.apply(p, x))(params, image))
            # On a CPU a product over shifted images is faster.
            assert (convolution in program) is (platform != "cpu")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, None),
        ("--xla_dump_to=x", "--xla_dump_to=x"),
        (
            "--xla_force_host_platform_device_count=8",
            f"--xla_force_host_platform_device_count=8 {ONE_AFTER_ANOTHER}",
        ),
        (
            "--xla_force_host_platform_device_count=8 --xla_cpu_enable_concurrency_optimized_scheduler=true",
            "--xla_force_host_platform_device_count=8 --xla_cpu_enable_concurrency_optimized_scheduler=true",
        ),
    ],
)
def test_simulated_devices_take_turns(before, after, monkeypatch):
    if before is None:
        monkeypatch.delenv("XLA_FLAGS")
    else:
        monkeypatch.setenv("XLA_FLAGS", before)
    settle_simulated_devices()
    settle_simulated_devices()
    assert os.environ.get("XLA_FLAGS") == after
