"""The reader of compiled programs, against programs whose FLOPs and exchanges are known by hand."""

import importlib.util
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from clipjax.cost import hlo
from clipjax.mesh import make_mesh

SIZES = {"data": 2, "fsdp": 4}


def compiled(function, *shapes, mesh=None, specs=None):
    specs = specs or [PartitionSpec()] * len(shapes)
    args = [
        jax.ShapeDtypeStruct(
            s, jnp.float32, sharding=None if mesh is None else NamedSharding(mesh, spec)
        )
        for s, spec in zip(shapes, specs, strict=True)
    ]
    return jax.jit(function).lower(*args).compile().as_text()


def layers(x, kernels):
    return jax.lax.scan(lambda y, k: (jnp.tanh(y @ k), None), x, kernels)[0]


def test_a_loop_counts_as_often_as_it_runs():
    text = compiled(layers, (64, 32), (5, 32, 32))
    assert hlo.matmul_flops(text) == 5 * 2 * 64 * 32 * 32
    nested = compiled(
        lambda x, k: jax.lax.fori_loop(0, 3, lambda i, y: layers(y, k), x), (64, 32), (5, 32, 32)
    )
    assert hlo.matmul_flops(nested) == 3 * 5 * 2 * 64 * 32 * 32
    gradient = compiled(jax.grad(lambda x, k: layers(x, k).sum(), (0, 1)), (64, 32), (5, 32, 32))
    assert hlo.matmul_flops(gradient) == 3 * 5 * 2 * 64 * 32 * 32


def test_a_loop_of_unknown_length_is_named():
    text = compiled(
        lambda x: jax.lax.while_loop(lambda y: y.sum() < 9.0, lambda y: y @ y, x), (8, 8)
    )
    with pytest.raises(ValueError, match="trip count of the loop 'while"):
        hlo.matmul_flops(text)


def test_batched_products_and_convolutions():
    assert (
        hlo.matmul_flops(
            compiled(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (6, 8, 16), (6, 16, 4))
        )
        == 2 * 6 * 8 * 16 * 4
    )

    def convolve(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (2, 2), ((0, 0), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    text = compiled(convolve, (2, 8, 8, 3), (2, 2, 3, 5))
    assert hlo.matmul_flops(text) == 2 * (2 * 4 * 4 * 5) * (2 * 2 * 3)
    # Padding is not computed: a 3x3 window over 4x4 meets 10 of its 12 rows, and as many columns.
    padded = """ENTRY %main (x: f32[1,4,4,3], k: f32[3,3,3,5]) -> f32[1,4,4,5] {
  %x = f32[1,4,4,3]{3,2,1,0} parameter(0)
  %k = f32[3,3,3,5]{3,2,1,0} parameter(1)
  ROOT %c = f32[1,4,4,5]{3,2,1,0} convolution(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}"""
    assert hlo.matmul_flops(padded) == 2 * 10 * 10 * 3 * 5


EXCHANGES = {
    # what runs on a [4, 6] float32 shard -> kind, axes, bytes received in one execution
    "psum": (lambda x: jax.lax.psum(x, "fsdp"), ("all-reduce", ("fsdp",), 2 * 3 / 4 * 96)),
    "psum both": (
        lambda x: jax.lax.psum(x, ("data", "fsdp")),
        ("all-reduce", ("data", "fsdp"), 2 * 7 / 8 * 96),
    ),
    "all_gather": (
        lambda x: jax.lax.all_gather(x, "fsdp", tiled=True)[:4],
        ("all-gather", ("fsdp",), 3 * 96),
    ),
    "psum_scatter": (
        lambda x: jnp.tile(jax.lax.psum_scatter(x, "fsdp", tiled=True), (4, 1)),
        ("reduce-scatter", ("fsdp",), 3 / 4 * 96),
    ),
    "all_to_all": (
        lambda x: jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True),
        ("all-to-all", ("fsdp",), 3 / 4 * 96),
    ),
    "ppermute": (
        lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]),
        ("collective-permute", ("data",), 96),
    ),
}


def mapped(function, mesh, times=1):
    """`function` on every device's [4, 6] part, `times` times in a loop."""
    spec = PartitionSpec(("data", "fsdp"))

    def repeat(x):
        return jax.lax.fori_loop(0, times, lambda i, y: jnp.sin(function(y)), x)

    return jax.shard_map(repeat, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False), spec


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_exchanges(exchange):
    function, (kind, axes, size) = EXCHANGES[exchange]
    mesh = make_mesh(SIZES)
    for times in (1, 7):
        run, spec = mapped(function, mesh, times)
        found = hlo.collectives(compiled(run, (32, 6), mesh=mesh, specs=[spec]))
        assert {c.kind for c in found} == {kind}
        assert sum(c.bytes * c.times for c in found) == size * times
        for c in found:
            assert hlo.axes_of(c.groups, mesh) == axes
            assert c.name.startswith("jit(repeat)")


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the compiler of `plan`")
def test_a_program_for_tpus():
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = make_mesh(SIZES, devices=devices)
    # Batched products become convolutions that are mostly padding.
    function = lambda x, k: jax.lax.scan(  # noqa: E731
        lambda y, w: (jax.lax.psum(jnp.einsum("hnd,hde->hne", y, w), "fsdp") / 9, None), x, k
    )[0]
    run = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(None, ("data", "fsdp")), PartitionSpec()),
        out_specs=PartitionSpec(None, ("data", "fsdp")),
        check_vma=False,
    )
    specs = [PartitionSpec(None, ("data", "fsdp")), PartitionSpec()]
    text = compiled(run, (3, 1024, 128), (5, 3, 128, 128), mesh=mesh, specs=specs)
    assert hlo.matmul_flops(text) == 5 * 2 * 3 * 128 * 128 * 128
    (found,) = (c for c in hlo.collectives(text) if c.times == 5)
    assert (found.kind, found.bytes) == ("all-reduce", 2 * 3 / 4 * 3 * 128 * 128 * 4)
    assert hlo.axes_of(found.groups, mesh) == ("fsdp",)


HEADER = "HloModule m, num_partitions=8\n\n"
BODY = """ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  {line}
}"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "%s = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), replica_groups={}, dimensions={0}\n"
            "  ROOT %d = f32[32]{0} all-gather-done(%s)",
            ("all-gather", 7 * 16, 1),
        ),
        (
            "ROOT %r = (f32[4]{0}, f32[4]{0:T(128)S(1)}) all-reduce(%x, %x), replica_groups={{0,1},{2,3},{4,5},{6,7}}",
            ("all-reduce", 2 * 16, 4),
        ),
        (
            "ROOT %p = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}",
            ("collective-permute", 16, 2),
        ),
        (
            "ROOT %p = f32[4]{0} collective-permute(%x), source_target_pairs={{0,0},{1,1}}",
            ("collective-permute", 0, 2),
        ),
    ],
)
def test_ways_of_writing(line, expected):
    (found,) = hlo.collectives(HEADER + BODY.replace("{line}", line))
    assert (found.kind, found.bytes, len(found.groups)) == expected


SPREAD = """HloModule m, num_partitions=8

%first (p0: f32[4]) -> (f32[4], f32[32], u32[]) {
  %p0 = f32[4]{0} parameter(0)
  %g = f32[32]{0} all-gather(%p0), channel_id=1, replica_groups={}, dimensions={0}
  ROOT %c = (f32[4]{0}, f32[32]{0}, u32[]{:S(2)}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%between (p0.1: f32[4], p1.1: f32[32], p2.1: u32[], p3.1: f32[6]) -> (f32[6], f32[4], f32[32], f32[32], u32[]) {
  %p0.1 = f32[4]{0} parameter(0)
  %p1.1 = f32[32]{0} parameter(1)
  %p2.1 = u32[]{:S(2)} parameter(2)
  %p3.1 = f32[6]{0} parameter(3)
  %work = f32[6]{0} negate(%p3.1)
  %g.1 = f32[32]{0} all-gather(%p0.1), channel_id=1, replica_groups={}, dimensions={0}
  ROOT %t = (f32[6]{0}, f32[4]{0}, f32[32]{0}, f32[32]{0}, u32[]) tuple(%work, %p0.1, %p1.1, %g.1, %p2.1)
}

%last (p0.2: f32[4], p1.2: f32[32], p2.2: u32[]) -> f32[32] {
  %p0.2 = f32[4]{0} parameter(0)
  %p1.2 = f32[32]{0} parameter(1)
  %g.2 = f32[32]{0} all-gather(%p0.2), channel_id=1, replica_groups={}, dimensions={0}
  %p2.2 = u32[]{:S(2)} parameter(2)
  ROOT %d = f32[32]{0} custom-call(%p0.2, %p1.2, %g.2, %p2.2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: f32[4], y: f32[6]) -> f32[32] {
  %x = f32[4]{0} parameter(0)
  %y = f32[6]{0} parameter(1)
  %a = (f32[4]{0}, f32[32]{0}, u32[]) fusion(%x), kind=kCustom, calls=%first
  %a0 = f32[4]{0} get-tuple-element(%a), index=0
  %a1 = f32[32]{0} get-tuple-element(%a), index=1
  %a2 = u32[] get-tuple-element(%a), index=2
  %b = (f32[6]{0}, f32[4]{0}, f32[32]{0}, f32[32]{0}, u32[]) fusion(%a0, %a1, %a2, %y), kind=kCustom, calls=%between
  %b1 = f32[4]{0} get-tuple-element(%b), index=1
  %b2 = f32[32]{0} get-tuple-element(%b), index=2
  %b4 = u32[] get-tuple-element(%b), index=4
  ROOT %r = f32[32]{0} fusion(%b1, %b2, %b4), kind=kCustom, calls=%last
}"""


def test_a_collective_spread_over_fusions_counts_once():
    """A TPU hides an exchange behind computations by giving each of them a part of it."""
    (found,) = hlo.collectives(SPREAD)
    assert (found.kind, found.bytes, found.times) == ("all-gather", 7 * 16, 1)
    # The first part reads 4 floats and hands on 4, 32 and a counter; the one between reads and writes 6.
    assert hlo.memory_traffic(SPREAD) == 4 * (4 + 4 + 32 + 1) + 4 * (6 + 6)


@given(st.permutations([0, 1, 2]), st.sampled_from([(8, 3), (4, 6), (24, 1), (1, 24)]))
def test_groups_written_as_a_permuted_range(order, shape):
    text = f"replica_groups=[{shape[0]},{shape[1]}]<=[2,3,4]T({','.join(map(str, order))}), x"
    wanted = np.arange(24).reshape(2, 3, 4).transpose(order).reshape(shape)
    assert hlo.replica_groups(text, 24) == tuple(map(tuple, wanted.tolist()))


def test_groups_written_by_axes():
    ids = np.arange(24).reshape(2, 3, 4)
    cases = {
        "{'b'}": ids.transpose(0, 2, 1).reshape(-1, 3),
        "{'a','c'}": ids.transpose(1, 0, 2).reshape(-1, 8),
        "{'c':(1)2}": ids.reshape(6, 2, 2).transpose(0, 2, 1).reshape(-1, 2),
        "{'c':(2)2}": ids.reshape(-1, 2),
    }
    for text, wanted in cases.items():
        groups = hlo.replica_groups(f"replica_groups=mesh['a'=2,'b'=3,'c'=4] {text}, x", 24)
        assert groups == tuple(map(tuple, wanted.tolist())), text
    with pytest.raises(ValueError, match="cannot be read"):
        hlo.replica_groups("replica_groups=something else", 8)


def test_a_sharded_step_moves_what_theory_says():
    """Data parallel: one all-reduce of the gradient. FSDP: gathers of the kernels and a scatter of their gradient."""
    mesh = make_mesh({"fsdp": 8})
    count = Counter()
    step = jax.value_and_grad(lambda k, x: jnp.mean((x @ k) ** 2))
    text = compiled(
        step, (64, 64), (32, 64), mesh=mesh, specs=[PartitionSpec(), PartitionSpec("fsdp")]
    )
    for c in hlo.collectives(text):
        count[c.kind] += c.bytes * c.times
    scalar = round(2 * 7 / 8 * 4)
    assert count == {"all-reduce": 2 * 7 / 8 * 64 * 64 * 4 + scalar}
    assert hlo.matmul_flops(text) == 2 * 2 * math.prod((32, 64, 64)) // 8
