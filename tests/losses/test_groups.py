"""The ring where devices stand in groups with a slow network between them: same numbers, few slow hops."""

import functools

import jax
import jax.numpy as jnp
import pytest

from clipjax.cost import hlo
from clipjax.losses import pairs, softmax_contrastive
from clipjax.losses.tiles import _routes
from clipjax.mesh import batch_sharding, make_mesh
from tests.losses.test_contrastive import LOSSES, check, embeddings


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("groups", [2, 4, 8])
def test_values_and_gradients(name, groups, monkeypatch):
    monkeypatch.setattr(pairs, "network_groups", lambda mesh, axes: groups)
    mesh = make_mesh({"data": 4, "fsdp": 2})
    check(name, *embeddings(), mesh=mesh, layout="ring", block_size=2)


@pytest.mark.parametrize(("devices", "groups"), [(8, 1), (8, 2), (8, 4), (8, 8), (12, 3), (2, 2)])
def test_every_block_meets_every_device_and_comes_home(devices, groups):
    inside, across, home = map(dict, _routes(devices, groups))
    size = devices // groups
    for start in range(devices):
        visited, here = [start], start
        for group in range(groups):
            for _ in range(size - 1):
                here = inside[here]
                visited.append(here)
            if group < groups - 1:
                here = across[here]
                visited.append(here)
        assert sorted(visited) == list(range(devices))
        assert all(a // size == b // size for a, b in inside.items())
        assert home[here] == start


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_few_hops_leave_a_group(groups, monkeypatch):
    monkeypatch.setattr(pairs, "network_groups", lambda mesh, axes: groups)
    mesh = make_mesh()
    rows = jax.ShapeDtypeStruct((512, 64), jnp.float32, sharding=batch_sharding(mesh))
    loss = functools.partial(softmax_contrastive, mesh=mesh, layout="ring")
    step = jax.jit(jax.grad(lambda i, t: loss(i, t, 10.0)[0], argnums=(0, 1)))
    text = step.lower(rows, rows).compile().as_text()
    size, block = 8 // groups, 512 // 8 * 64 * 4
    slow = total = 0
    for c in hlo.collectives(text):
        if c.kind == "collective-permute" and c.bytes >= block:
            total += c.times * c.bytes // block
            if all(a // size != b // size for a, b in c.groups):
                slow += c.times * c.bytes // block
    # Texts go round in both passes, their gradients in the second, and these go home.
    assert total == 3 * 7 + 1
    if groups > 1:
        assert slow == 3 * (groups - 1) + 1
