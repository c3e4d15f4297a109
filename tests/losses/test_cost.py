"""What the contrastive losses cost, read from the compiled program: memory, FLOPs, elements communicated."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from clipjax.cost import hlo
from clipjax.losses import region_contrastive, sigmoid_contrastive, softmax_contrastive
from clipjax.mesh import batch_sharding, make_mesh

N = 8
LOSSES = {
    "softmax": lambda i, t, s, b, **k: softmax_contrastive(i, t, s, **k)[0] + 0.0 * b,
    "sigmoid": lambda i, t, s, b, **k: sigmoid_contrastive(i, t, s, b, **k)[0],
}


def regions(region, text, scale, bias, **settings):
    """Four regions an image."""
    region, text = (x.reshape(-1, 4, x.shape[-1]) for x in (region, text))
    mask = region[..., 0] < 2.0  # all of them, but the compiler cannot know
    return region_contrastive(region, text, mask, scale, **settings)[0] + 0.0 * bias


@functools.cache
def cost(name, layout, batch, width, **settings):
    """(bytes of one device, FLOPs in bBD, elements communicated in BD) of value and gradients; default block size."""
    mesh = make_mesh()
    rows = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=batch_sharding(mesh))
    number = jax.ShapeDtypeStruct((), jnp.float32)
    function = (LOSSES | {"regions": regions})[name]
    loss = functools.partial(function, mesh=mesh, layout=layout, **settings)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))
    compiled = step.lower(rows, rows, number, number).compile()
    used, text = compiled.memory_analysis(), compiled.as_text()
    memory = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
    moved = sum(c.bytes * c.times for c in hlo.collectives(text)) / 4
    return memory, hlo.matmul_flops(text) * N / (batch**2 * width), moved / (batch * width)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("layout", "limit"), [("ring", 0.12e9), ("gather", 0.30e9)])
def test_limits_at_full_size(name, layout, limit):
    memory, flops, words = cost(name, layout, 32_768, 768)
    assert memory <= limit
    assert 7.9 < flops <= 8.2
    # Forward BD (N - 1) / N, and the same for the gradient; the ring brings the texts once more.
    assert words < (2.0 if layout == "gather" else 3.0)


@pytest.mark.parametrize(("layout", "limit"), [("ring", 0.16e9), ("gather", 0.31e9)])
def test_regions_at_full_size(layout, limit):
    """B / 4 images. The filter of like texts costs a product more in each pass, and no words."""
    memory, flops, words = cost("regions", layout, 32_768, 768)
    assert memory <= limit  # the matrix would be 0.5 GB a device
    assert 11.8 < flops <= 12.3
    assert words < (2.0 if layout == "gather" else 3.0)


def test_regions_without_the_filter_cost_what_images_do():
    assert 7.9 < cost("regions", "ring", 4096, 64, conflict_threshold=2.0)[1] <= 8.2


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("layout", ["ring", "gather"])
def test_memory_grows_no_faster_than_the_batch(name, layout):
    small, large = (cost(name, layout, batch, 768)[0] for batch in (16_384, 65_536))
    assert large < 4.1 * small


def test_a_million_on_256_devices():
    """In a process of its own, which simulates that many devices."""
    tool = Path(__file__).parents[2] / "tools" / "bench_loss.py"
    settings = ["--devices=256", "--batches=1048576", "--schemes=ring"]
    done = subprocess.run(
        [sys.executable, tool, *settings],
        capture_output=True,
        text=True,
        env=os.environ,
        check=True,
    )
    row = [cell.strip() for cell in done.stdout.splitlines()[-1].split("|")[1:-1]]
    assert row[:2] == ["ring", "1,048,576"]
    assert float(row[2]) <= 0.3
    assert float(row[3]) <= 8.2
