"""What the train steps of some configs become on eight devices: as before (tests/golden/), and as theory says.

The goldens tell of every change. The theory below reads the goldens themselves, so that they are not just what came
out once: bytes are from the arrays' shapes, FLOPs from the towers'.
"""

import difflib
import functools
import math
import re
from typing import NamedTuple

import pytest

from tests import step_golden
from tests.step_golden import CASES, COLLECTIVES, COMMAND, ROOT

VERSIONS = re.findall(r"^jax==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
BATCH, LAYERS, IMAGE_TOKENS, TEXT_TOKENS = 64, 2, 16, 8
FLOAT = 4
SCALARS = 16 * FLOAT  # sums of the loss, its metrics and its scalars that may ride along

read = functools.cache(step_golden.read)
make = functools.cache(step_golden.make)


def block(name, title):
    """A block of a golden."""
    if title not in read(name):
        pytest.fail(
            f"{step_golden.path(name).relative_to(ROOT)} has no block {title!r}: run `{COMMAND}` with such a JAX, and "
            "see whether what it adds is sound.",
            pytrace=False,
        )
    return read(name)[title]


def compare(name, found):
    """Fails with the difference between a golden's blocks and those found."""
    golden = {title: block(name, title) for title in found}
    texts = [step_golden.join(blocks).splitlines() for blocks in (golden, found)]
    file = str(step_golden.path(name).relative_to(ROOT))
    lines = list(difflib.unified_diff(*texts, file, "this program", n=1, lineterm=""))
    if lines:
        end = f"If this is meant, run `{COMMAND}` with each Python of constraints.txt and commit what it writes."
        pytest.fail("\n".join(["The train step has changed.", *lines, end]), pytrace=False)


@pytest.mark.parametrize("name", CASES)
def test_arrays_are_split_as_before(name):
    compare(name, step_golden.resolved(name, make(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_compiled_step_is_as_before(name):
    block(name, COLLECTIVES)  # do not compile first what cannot be compared
    compare(name, step_golden.compiled(make(name)))


@pytest.mark.parametrize("name", CASES)
def test_there_is_a_block_for_each_pinned_jax(name):
    titles = {title for title in read(name) if title.startswith("collectives")}
    for version in VERSIONS:
        block(name, f"collectives, JAX {version}")
        titles.remove(f"collectives, JAX {version}")
    assert not titles, f"no longer pinned in constraints.txt; delete them from step_{name}.txt"


class Array(NamedTuple):
    """A parameter as a golden tells of it."""

    shape: tuple[int, ...]
    split: tuple[str, ...]

    @property
    def bytes(self):
        return FLOAT * math.prod(self.shape)


def parameters(name):
    rows = (line.split() for line in block(name, "parameters"))
    return {
        path: Array(tuple(map(int, re.findall(r"\d+", shape.removeprefix("float32")))), tuple(axes))
        for path, shape, *axes in rows
    }


def size(arrays, pattern, *axes):
    """Bytes of the parameters whose path fits and that these mesh axes split, among others."""
    return sum(
        x.bytes for p, x in arrays.items() if re.fullmatch(pattern, p) and set(axes) <= set(x.split)
    )


def numbers(name, title):
    """The numbers of each line of a block, by its first words."""
    rows = (re.split(r"  +", line, maxsplit=1) for line in block(name, title))
    return {k: [int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", v)] for k, v in rows}


def moved(name, version):
    """(kind, "axis+axis") -> bytes that one device receives."""
    rows = (line.split() for line in block(name, f"collectives, JAX {version}"))
    return {(kind, axes): int(received.replace(",", "")) for kind, axes, _, _, received, *_ in rows}


@pytest.mark.parametrize("name", CASES)
def test_what_devices_hold_and_give_back(name):
    sizes = dict(make(name).mesh.shape)
    whole, of_device = 0, 0
    for x in parameters(name).values():
        assert len(x.split) == len(x.shape)
        parts = [sizes.get(axis, 1) for axis in x.split]
        assert all(n % p == 0 for n, p in zip(x.shape, parts, strict=True))
        whole, of_device = whole + x.bytes, of_device + x.bytes // math.prod(parts)
    settings, program = numbers(name, "settings"), numbers(name, "program")
    params, optimizer, average, batch = settings["held"]
    assert settings["parameters"] == [whole // FLOAT, len(parameters(name)), 0]
    assert params == of_device
    # Two moments, and the counters of Adam and of the schedule.
    assert optimizer == 2 * of_device + 2 * FLOAT
    assert average == (of_device if "optim.ema=0.999" in CASES[name].overrides else 0)
    state = params + optimizer + average + FLOAT  # the step
    assert program["donated"] == [state]
    seeds = batch - (program["arguments"][0] - state)
    assert seeds == BATCH // (sizes["data"] * sizes["fsdp"]) * FLOAT  # nothing reads them here
    assert program["devices"] == [8]


@pytest.mark.parametrize("version", VERSIONS)
def test_data_parallel(version):
    """Every gradient is reduced once; the texts are gathered once, and their gradient comes home once."""
    arrays, found, width = parameters("clip_data8"), moved("clip_data8", version), 32
    assert not any(set(x.split) - {"-"} for x in arrays.values())
    assert {axes for _, axes in found} == {"data"}
    # The class token is added to the first position, so the two have one gradient, and XLA reduces it once.
    gradients = size(arrays, ".*") - size(arrays, "image/class_token|logit_scale")
    tops = BATCH * FLOAT  # of each text the highest similarity
    scalars = found.pop(("all-reduce", "data")) / (2 * 7 / 8) - gradients - tops
    assert 0 <= scalars <= SCALARS
    for kind in ("all-gather", "reduce-scatter"):
        words = found.pop((kind, "data")) / (7 / 8 * BATCH * FLOAT)
        assert width <= words <= width + 8  # of each text: its embedding, and a few numbers
        assert words == int(words)
    assert not found
    program = numbers("clip_data8", "program")
    # There is one tile, and the compiler keeps its logits rather than form them again.
    logits = 2 * (BATCH // 8) * BATCH * width
    assert program["FLOPs compiled"][0] == program["FLOPs needed"][0] - logits


@pytest.mark.parametrize("version", VERSIONS)
def test_fsdp_with_remat_and_ring(version):
    arrays, found = parameters("clip_fsdp4"), moved("clip_fsdp4", version)
    blocks = ".*/blocks/.*"
    kernels = size(arrays, ".*/(qkv_)?kernel", "fsdp")
    # Each kernel is gathered once, those of the layers for the backward pass once more; biases may be.
    once, twice = size(arrays, ".*", "fsdp"), size(arrays, blocks, "fsdp")
    least = kernels + size(arrays, f"{blocks}kernel", "fsdp")
    assert 3 / 4 * least <= found["all-gather", "fsdp"] <= 3 / 4 * (once + twice)
    # Over `data` no parameter is gathered. JAX 0.10 looks tokens up for all rows, so their embeddings are.
    token_rows = BATCH * TEXT_TOKENS * 32 * FLOAT // 4
    assert found.get(("all-gather", "data"), 0) <= token_rows // 2
    # Kernels' gradients are reduced over `fsdp`, with the norm's scalars, and then their slices over `data`.
    scalars = found["all-reduce", "fsdp"] / (2 * 3 / 4) - kernels
    assert 0 <= scalars <= len(arrays) * FLOAT
    slices, whole = found["all-reduce", "data"], found["all-reduce", "data+fsdp"] / (2 * 7 / 8)
    assert slices >= kernels / 4
    gradients = size(arrays, ".*") - size(arrays, "image/class_token|logit_scale")
    assert 0 <= 4 * slices + whole - gradients <= SCALARS
    # Texts go round in 7 hops; backward they do again, and their gradient with them in 8.
    words = found["collective-permute", "data+fsdp"] / (22 * BATCH / 8 * FLOAT)
    assert 32 <= words <= 32 + 8
    # Remat repeats the layers but for their last product.
    again = sum(
        LAYERS * BATCH // 8 * (n * (24 - 8) * w**2 + 4 * n**2 * w)
        for n, w in ((IMAGE_TOKENS + 1, 48), (TEXT_TOKENS, 32))
    )
    program = numbers("clip_fsdp4", "program")
    assert program["FLOPs compiled"][0] == program["FLOPs needed"][0] + again


@pytest.mark.parametrize("version", VERSIONS)
def test_tensor_with_gradient_cache(version):
    arrays, found = parameters("siglip_tensor2"), moved("siglip_tensor2", version)
    width, chunks = 48, 2
    # The loss spreads over all axes: one gather of the texts with a number each, and their gradient home.
    texts = 7 / 8 * BATCH * width * FLOAT
    assert found["reduce-scatter", "data+fsdp+tensor"] == texts
    assert texts <= found["all-gather", "data+fsdp+tensor"] <= texts * (1 + 8 / width)
    # Every micro-batch reduces the gradients, but for the pooling query: it sees no image.
    kernel = r".*/(blocks/.*|pool/(?!query).*)kernel|text/token_embedding"
    assert found["all-reduce", "data"] == chunks * size(arrays, kernel, "fsdp", "tensor") / 4
    # Every micro-batch gathers the layers' kernels three times: forward, forward again, and backward.
    least = 3 * chunks * size(arrays, ".*/blocks/.*kernel", "fsdp", "tensor") / 2 / 2
    assert least <= found["all-gather", "fsdp"] <= 1.5 * least
    # Shoeybi et al. 2019, figure 3: a layer reduces its activations over `tensor` twice each way.
    rows = BATCH // 4 // chunks * (IMAGE_TOKENS + TEXT_TOKENS) * width * FLOAT
    least = chunks * LAYERS * 3 * 2 * rows
    assert least <= found["all-reduce", "tensor"] <= 1.25 * least
    # The towers run forward once more. What `tensor` does not split, such as the stem, is done twice.
    needed, compiled = (
        numbers("siglip_tensor2", "program")[f"FLOPs {what}"][0] for what in ("needed", "compiled")
    )
    loss = 8 * (BATCH // 8) * BATCH * width
    least = (needed - loss) * 4 / 3
    assert least <= compiled <= 1.25 * least
