"""`clipjax plan`: the real step for devices that are not there, and what is said about it against counts by hand."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipjax import rules
from clipjax.cost import hlo
from clipjax.cost.hardware import DEVICES
from clipjax.errors import UserError
from clipjax.mesh import make_mesh
from clipjax.plan import report, roofline
from clipjax.plan.compile import compile_losses, compile_step, make_job, out_of_memory
from clipjax.plan.plan import _next_batch, changed, extrapolate, largest_batch, plan, variations
from clipjax.plan.topology import find
from tests.tiny_run import CONFIG, tiny_config

needs_tpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="needs the compiler of the extra `plan`"
)
needs_gpu = pytest.mark.skipif(
    not importlib.util.find_spec("jax_plugins"), reason="needs the compiler of the extra `plan`"
)
WIDTH, BATCH = 128, 256


def config(*overrides):
    """The tiny run, wide enough that parameters and activations can be told apart."""
    sizes = [
        f"model.{t}.{k}={v}" for t in ("image", "text") for k, v in (("width", WIDTH), ("depth", 2))
    ]
    return tiny_config(*sizes, f"batch_size={BATCH}", "evals={}", *overrides)


@pytest.fixture(scope="module")
def on_eight():
    return plan(
        config("mesh.data=2", "mesh.fsdp=4", "model.image.patch_dropout=0.0"), find("cpu:8")
    )


def forward_flops(tokens, width, depth):
    """Matrix products of one sample through a transformer: q, k, v, out and a 4-fold MLP, and attention's two."""
    return depth * (2 * tokens * width * width * (4 + 8) + 2 * 2 * tokens * tokens * width)


def test_flops_against_a_count_by_hand(on_eight):
    image_tokens, text_tokens, embed = 1 + 4, 8, 16
    forward = forward_flops(image_tokens, WIDTH, 2) + forward_flops(text_tokens, WIDTH, 2)
    stem = 2 * 4 * (8 * 8 * 3) * WIDTH
    heads = 2 * 2 * WIDTH * embed
    # Pixels need no gradient; the loss takes 8 BD a sample, of the whole batch.
    wanted = 3 * (forward + heads) + 2 * stem + 8 * BATCH * embed
    per_device = wanted * BATCH / 8
    assert on_eight["flops"]["needed"] == pytest.approx(per_device, rel=0.01)
    assert on_eight["flops"]["compiled"] == pytest.approx(per_device, rel=0.01)
    with_remat = [
        "model.image.remat=full",
        "model.text.remat=full",
        "model.image.patch_dropout=0.0",
    ]
    again = plan(config("mesh.data=2", "mesh.fsdp=4", *with_remat), find("cpu:8"), losses=False)
    assert again["flops"]["needed"] == pytest.approx(per_device, rel=0.01)
    repeated = forward * BATCH / 8
    # XLA may leave out what the backward pass does not need: the last product of a block.
    low, high = per_device + 0.6 * repeated, per_device + 1.01 * repeated
    assert low < again["flops"]["compiled"] < high


def test_memory_by_kind(on_eight):
    memory = on_eight["memory"]
    job = make_job(config("mesh.data=2", "mesh.fsdp=4"), find("cpu:8"))
    whole = 4 * sum(x.size for x in jax.tree.leaves(job.state.params))
    assert whole == 4 * on_eight["parameters"]
    assert whole / 4 < memory["parameters"] < 0.3 * whole  # nearly all are split over fsdp
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], abs=100)
    assert memory["average"] == memory["parameters"]
    assert memory["batch"] == BATCH // 8 * (16 * 16 * 3 + 4 * 8 + 4)
    parts = (
        "parameters",
        "optimizer",
        "average",
        "batch",
        "padding",
        "gradients",
        "losses",
        "activations",
    )
    assert sum(memory[k] for k in parts) == memory["total"]
    assert memory["capacity"] is None
    assert memory["fits"]
    assert on_eight["largest_batch"] is None


def test_what_is_moved_along_which_axis(on_eight):
    moved = {(e["kind"], *e["axes"]): e for e in on_eight["exchanges"]}
    share = on_eight["memory"]["parameters"]
    # Each device's share of the gradient meets its like along `data`; kernels are gathered along `fsdp` twice.
    along_data = sum(e["link"] for (kind, *axes), e in moved.items() if axes == ["data"])
    assert along_data == pytest.approx(2 * 1 / 2 * share, rel=0.1)
    gathered = sum(
        e["link"] for (kind, *axes), e in moved.items() if kind == "all-gather" and "fsdp" in axes
    )
    assert gathered > 1.5 * 3 * share
    assert all(e["dcn"] == 0 for e in moved.values())
    job = make_job(config("mesh.data=2", "mesh.fsdp=4"), find("cpu:8"))
    assert hlo.collectives(compile_losses(job).text)


def test_shardings_and_remarks(on_eight):
    rows = {r["parameter"]: r for r in on_eight["shardings"]}
    row = rows["image/transformer/blocks/mlp/fc_in/kernel"]
    assert row["shape"] == [2, WIDTH, 4 * WIDTH]
    assert row["split"] == [None, "fsdp", "tensor"]
    assert row["bytes"] == 4 * 2 * WIDTH * 4 * WIDTH / 4
    assert on_eight["remarks"] == []


def test_a_plan_is_made_of_json(on_eight):
    assert json.loads(json.dumps(on_eight)) == json.loads(json.dumps(on_eight, allow_nan=False))


def test_estimate_by_hand():
    figures = DEVICES["v5e"]
    moved = [
        roofline.Exchange("all-gather", ("fsdp",), 3, 2e9, 0.0, 1.0),
        roofline.Exchange("all-reduce", ("data",), 1, 1e9, 5e8, 0.0),
    ]
    found = roofline.estimate(figures, 4e13, 3e13, 1e11, moved)
    assert found.compute == pytest.approx(4e13 / 197e12)
    assert found.memory == pytest.approx(1e11 / 819e9)
    assert found.link == pytest.approx(3e9 / 100e9)
    assert found.dcn == pytest.approx(5e8 / 3.125e9)
    assert found.best == found.compute
    assert found.worst == pytest.approx(found.compute + found.link + found.dcn)
    assert found.mfu[1] == pytest.approx(0.75)


class Fake:
    """A device of a slice or a host."""

    def __init__(self, number, slice_index=0, process_index=0):
        self.id, self.slice_index, self.process_index = number, slice_index, process_index


def test_gpus_exchange_in_two_stages_across_hosts():
    mesh = make_mesh({"data": 2, "fsdp": 4}, jax.devices())
    fakes = np.array([Fake(i, process_index=i // 4) for i in range(8)])
    domain = np.array([d.process_index for d in fakes])
    whole = hlo.Collective("all-gather", 7 * 16, 1, (tuple(range(8)),), "")
    link, dcn = roofline._split(whole, domain)
    # Of 128 bytes each of 4 GPUs fetches a quarter of the other host's half, and the rest from its neighbours.
    assert (link, dcn) == (96, 16)
    inside = hlo.Collective("all-gather", 3 * 16, 1, ((0, 1, 2, 3), (4, 5, 6, 7)), "")
    assert roofline._split(inside, domain) == (48, 0)
    hop = hlo.Collective("collective-permute", 16, 1, ((3, 4), (7, 0)), "")
    assert roofline._split(hop, domain) == (0, 16)
    assert roofline._across(mesh, domain) == ("data",)


SLICES = """HloModule m, num_partitions=4

ENTRY %main (x: f32[6]) -> f32[6] {
  %x = f32[6]{0} parameter(0)
  %t = token[] after-all()
  %r = (f32[6]{0}, u32[], token[]) recv(%t), channel_id=1, is_host_transfer=true, frontend_attributes={TARGET}
  %work = f32[6]{0} fusion(%x), kind=kLoop, calls=%f
  %d = (f32[6]{0}, token[]) recv-done(%r), channel_id=1
  ROOT %out = f32[6]{0} get-tuple-element(%d), index=0
}"""


@pytest.mark.parametrize(
    ("kind", "target", "wanted"),
    [
        ("ALL_REDUCE", '"{1,2,3,4}x{0:3}"', ("all-reduce", 2 * 3 / 4 * 24, 4)),
        ("ALL_REDUCE", '"{0:1}x{0:3}"', ("all-reduce", 24, 2)),
        ("ALL_GATHER", '"{1,2}x{0:3}"', ("all-gather", 12, 2)),
        ("REDUCE_SCATTER", '"{1,2}x{0:3}"', ("reduce-scatter", 24, 2)),
        ("ONE_TO_ONE", "{{100015->200000},{200015->100000}}", ("collective-permute", 24, 2)),
    ],
)
def test_exchanges_between_slices(kind, target, wanted):
    attributes = f'_xla_megascale_target={target},_xla_megascale_transfer_type="{kind}"'
    (found,) = hlo.collectives(SLICES.replace("TARGET", attributes))
    assert (found.kind, found.bytes, found.slices) == wanted
    assert found.hidden
    with pytest.raises(ValueError, match="unknown type, SOMETHING"):
        hlo.collectives(SLICES.replace("TARGET", attributes.replace(kind, "SOMETHING")))


@needs_tpu
def test_tpu_slices():
    found = plan(config("mesh.data=-1", "mesh.fsdp=4"), find("v5e:2x2", 2))
    assert found["topology"] == "v5e:2x2 x 2 slices"
    assert found["devices"] == 8
    assert found["mesh"] == {"data": 2, "fsdp": 4}
    across = [e for e in found["exchanges"] if e["dcn"]]
    assert {tuple(e["axes"]) for e in across} == {("data",)}
    # The gradient's share meets its like in the other slice, in float32 or in the bfloat16 of the products.
    share = found["memory"]["parameters"]
    assert 0.5 * share < sum(e["dcn"] for e in across) < 1.6 * share
    assert found["memory"]["capacity"] == DEVICES["v5e"].memory
    assert found["memory"]["fits"]
    assert 0 < found["seconds"]["mfu"][0] <= found["seconds"]["mfu"][1] < 1


@needs_tpu
def test_gathers_are_hidden_behind_computing():
    """Overlap is XLA's business; that layers' parameters are gathered meanwhile is seen in the program, not assumed."""
    mesh = make_mesh({"fsdp": 4}, find("v5e:2x2").devices)
    split = lambda *spec: jax.NamedSharding(mesh, jax.P(*spec))  # noqa: E731
    kernels = jax.ShapeDtypeStruct((6, 1024, 1024), np.float32, sharding=split(None, "fsdp"))
    x = jax.ShapeDtypeStruct((4096, 1024), np.float32, sharding=split("fsdp"))

    def layer(y, kernel):
        y = jax.nn.relu(y @ kernel)
        return jax.lax.with_sharding_constraint(y, split("fsdp")), None

    def layers(kernels, x):
        return jax.lax.scan(layer, x, kernels)[0].sum()

    text = jax.jit(jax.grad(layers)).lower(kernels, x).compile().as_text()
    gathers = [c for c in hlo.collectives(text) if c.kind in ("all-gather", "collective-permute")]
    total = sum(c.bytes * c.times for c in gathers)
    assert total > 0
    # In a loop of single layers nothing runs before the first product; in the backward pass something does.
    assert sum(c.bytes * c.times for c in gathers if c.hidden) >= 0.5 * total


@needs_tpu
def test_a_program_that_is_too_large():
    found = plan(config("model.image.size=64", "batch_size=8_388_608"), find("v5e:2x2"))
    memory = found["memory"]
    assert not memory["fits"]
    assert memory["total"] > memory["capacity"] == 15.75 * 2**30
    assert "exchanges" not in found
    assert 0 < found["largest_batch"] < 8_388_608


def test_the_largest_batch_that_fits(monkeypatch):
    def fake(config, target, losses):
        total = 1e9 + 2e5 * config.batch_size**1.05
        memory = {"total": total, "capacity": capacity, "fits": total <= capacity}
        return {"batch_size": config.batch_size, "memory": memory}

    monkeypatch.setattr("clipjax.plan.plan.plan", fake)
    target = find("cpu:8")._replace(name="h100:8", figures=DEVICES["h100"])
    capacity = 80e9
    batch, found = largest_batch(config("mesh.data=8"), target)
    assert batch % 8 == 0
    assert found["batch_size"] == batch
    assert 0.9 * capacity < found["memory"]["total"] <= capacity
    capacity = 5e8
    with pytest.raises(UserError, match="Not even a batch of 8 fits on h100:8"):
        largest_batch(config("mesh.data=8"), target)


@given(
    st.integers(1, 64),
    st.floats(0, 2e9),
    st.floats(1.0, 1e7),
    st.floats(0.9, 1.15),
    st.integers(1, 4096),
)
def test_the_search_ends_at_a_batch_that_fits(unit, fixed, each, bend, start):
    """Memory that is only nearly linear in the batch."""
    capacity, tried, batch = 4e9, {}, unit * start
    memory = lambda b: fixed + each * b**bend  # noqa: E731
    while batch not in tried and len(tried) < 40:
        total = memory(batch)
        tried[batch] = {"total": total, "capacity": capacity, "fits": total <= capacity}
        batch = _next_batch(tried, unit)
    assert len(tried) < 40
    assert all(b % unit == 0 for b in tried)
    best = max((b for b, m in tried.items() if m["fits"]), default=None)
    if best is None:
        assert memory(unit) > capacity
    else:
        assert memory(max(best + 2 * unit, int(best * 1.12) // unit * unit)) > capacity


@needs_gpu
@pytest.mark.parametrize("count", [8, 16])
def test_gpus(count):
    found = plan(config(), find(f"h100:{count}"))
    assert found["devices"] == count
    assert found["memory"]["capacity"] == 80e9
    crosses = sum(e["dcn"] for e in found["exchanges"])
    assert bool(crosses > 0) is (count > 8)
    assert 0 < found["seconds"]["mfu"][0] <= found["seconds"]["mfu"][1] < 1


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("RESOURCE_EXHAUSTED: ... Used 24.31G of 15.75G hbm. Exceeded", (24.31, 15.75)),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (17.08G) "
            "exceeds available HBM (15.75G).",
            (17.08, 15.75),
        ),
        ("RESOURCE_EXHAUSTED: vmem", (0, 0)),
        ("INTERNAL: Used 24.31G of 15.75G hbm", (0, 0)),
    ],
)
def test_what_the_compiler_says_of_too_large_programs(message, wanted):
    assert out_of_memory(message) == pytest.approx(tuple(w * 2**30 for w in wanted))


def test_extrapolation():
    job = make_job(config("mesh.data=8"), find("cpu:8"))
    used = {
        "parameters": 10,
        "optimizer": 20,
        "average": 10,
        "gradients": 10,
        "total": 50 + BATCH,
        "capacity": 50 + 1001,
    }
    assert extrapolate(job, used) == 1000  # a byte a sample, and a multiple of 8
    assert extrapolate(job, used | {"capacity": 40}) is None
    assert extrapolate(job, used | {"capacity": None}) is None


@pytest.mark.parametrize(
    ("text", "slices", "message"),
    [
        ("v5:16x16", 1, "There is no topology 'v5:16x16'"),
        ("v5e", 1, "write KIND:SHAPE or KIND:COUNT"),
        ("v5e:16,16", 1, "There is no topology"),
        ("cpu:9999", 1, "needs 9999 simulated devices"),
        ("cpu:2x2", 1, "give their number alone"),
        ("cpu:8", 2, "--slices=2 makes sense for TPUs only"),
        ("v5e:2x2", 0, "from 1 on"),
        pytest.param("v5e:7", 1, "no slice of 7 v5e chips", marks=needs_tpu),
        pytest.param("v5e:3x5x7", 1, "does not take the topology v5e:3x5x7", marks=needs_tpu),
        pytest.param("h100:12", 1, "12 GPUs are not whole hosts of 8", marks=needs_gpu),
        pytest.param("h100:2x4", 1, "GPUs are given by their number", marks=needs_gpu),
    ],
)
def test_topologies_that_do_not_exist(text, slices, message):
    with pytest.raises(UserError, match=re.escape(message)):
        find(text, slices)


@pytest.mark.parametrize("whole_package", [False, True])
def test_missing_compilers_are_named(monkeypatch, whole_package):
    def find_spec(name):
        if whole_package and "." in name:
            raise ModuleNotFoundError(f"No module named {name.split('.')[0]!r}")

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    for text in ("v5e:2x2", "h100:8"):
        with pytest.raises(UserError, match=r"pip install 'clipjax\[plan\]'"):
            find(text)


@needs_tpu
@pytest.mark.parametrize(
    ("text", "shape"), [("v5e:256", "v5e:16x16"), ("v5p-512", "v5p:8x8x8"), ("v6e:8", "v6e:2x4")]
)
def test_counts_become_shapes(text, shape):
    found = find(text)
    assert found.name == shape
    count = math.prod(map(int, shape.split(":")[1].split("x")))
    assert len(found.devices) == count


def test_variations_fill_the_devices():
    for found in variations(config(), find("cpu:8")):
        sizes = {
            k: int(v) for k, v in (o.removeprefix("mesh.").split("=") for o in found if "mesh" in o)
        }
        assert math.prod(sizes.values()) == 8
        changed(config(), found)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "clipjax.cli", "plan", f"--config={CONFIG}", *arguments],
        env=os.environ
        | {"PYTHONPATH": str(Path(__file__).parent.parent), "COLUMNS": "160", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def test_the_command(tmp_path):
    done = command("--topology=cpu:4", f"--json={tmp_path / 'plan.json'}", "--config.mesh.fsdp=4")
    assert done.returncode == 0, done.stderr
    for title in ("cpu:4: 4 devices, mesh fsdp=4", "Memory", "Shardings", "Exchanges", "Roofline"):
        assert title in done.stdout
    assert json.loads((tmp_path / "plan.json").read_text())["mesh"] == {"fsdp": 4}
    assert done.stderr == ""


def test_a_sweep(tmp_path, monkeypatch, capsys):
    every = variations(config(), find("cpu:2"))
    assert len(every) == 6
    monkeypatch.setattr(report, "variations", lambda *_: [*every[::3], ["batch_size=3"]])
    monkeypatch.setenv("COLUMNS", "160")
    file = tmp_path / "sweep.json"
    assert report.run(tiny_config("evals={}"), "cpu:2", sweep=True, output=str(file)) == 0
    printed = capsys.readouterr().out
    assert "Recommended: --config.mesh.data=" in printed
    assert "3 does not divide over 2 devices" in printed
    plans = json.loads(file.read_text())["sweep"]
    assert [p.get("memory", {}).get("fits") for p in plans] == [True, True, None]


def test_what_the_command_refuses(tmp_path):
    for arguments, message in (
        (["--topology=v5:4"], "There is no topology 'v5:4'"),
        (["--topology=cpu:3"], "config.batch_size = 8 does not divide over 3 devices"),
        (["--topology=cpu:2", "--largest-batch"], "A CPU has no fixed capacity"),
        (["--topology=cpu:2", f"--json={tmp_path / 'no' / 'file'}"], "no"),
    ):
        done = command(*arguments)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_steps_are_the_same_program_as_a_run(on_eight):
    """The plan compiles what `clipjax train` jits: same parameters, same step."""
    job = make_job(config("mesh.data=2", "mesh.fsdp=4"), find("cpu:8"))
    compiled = compile_step(job)
    assert compiled.aliased > 0.9 * compiled.arguments * 0.5  # the state is donated
    assert set(rules.paths(job.state.params)) >= {"logit_scale", "text/token_embedding"}
