"""The gradient cache: what it returns is the whole batch's, what it holds is a micro-batch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clipjax import rules
from clipjax.cost import hlo
from clipjax.errors import UserError
from clipjax.gradient_cache import value_and_grad
from clipjax.mesh import batch_sharding, make_mesh, parameter_shardings
from clipjax.models import example_batch, image_section, make_model, model_section, text_section
from clipjax.objective import make_losses
from tests.losses import oracle

BATCH, LENGTH, WORDS = 64, 6, 32
WIDTH = 6  # of the shared space of the linear towers
SCALES = ((14.3, 2e-6), (100.0, 2e-5))
BIAS = -3.0


@functools.cache
def model_and_shapes():
    """A dual encoder that drops half of its patches, and its parameters' shapes with their logical axes."""
    tower = dict(width=16, depth=1, heads=2)
    config = model_section(
        image_section(size=16, patch=4, patch_dropout=0.5, **tower),
        text_section(length=LENGTH, vocab_size=WORDS, end_token=3, **tower),
        embed_dim=8,
        init_bias=-2.0,
        dtype="float32",
    )
    model = make_model(config)
    return model, jax.eval_shape(model.init, jax.random.key(0), example_batch(config))["params"]


@functools.cache
def params():
    model, _ = model_and_shapes()
    rows = {k: x[:1] for k, x in batch().items()}
    return nn.unbox(jax.jit(model.init)(jax.random.key(0), rows))["params"]


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    text = rng.integers(4, WORDS, (BATCH, LENGTH), np.int32)
    text[:, -1] = 3
    image = rng.integers(0, 256, (BATCH, 16, 16, 3), np.uint8)
    return {"image": image, "text": text, "sample_seed": np.arange(BATCH, dtype=np.uint32) * 977}


def compile_model(kind, chunks, sizes, layout, count=BATCH):
    """The compiled `(params, batch) -> ((value, metrics), gradients)` of the dual encoder on a mesh, and the mesh."""
    return _compile_model(kind, chunks, tuple(sizes.items()), layout, count)


@functools.cache
def _compile_model(kind, chunks, sizes, layout, count):
    sizes = dict(sizes)
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    model, boxed = model_and_shapes()
    losses = make_losses({"pairs": {"kind": kind, "layout": layout, "block_size": 16}}, mesh)

    def function(params, batch):
        encode = lambda p, rows: model.apply({"params": p}, rows, train=True)  # noqa: E731
        total = lambda _, outputs: losses(outputs, batch, jnp.float32(0))  # noqa: E731
        return value_and_grad(encode, total, params, batch, chunks)

    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    shapes = jax.tree.map(place, nn.unbox(boxed), parameter_shardings(boxed, mesh))
    rows = {
        k: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=batch_sharding(mesh))
        for k, x in batch().items()
    }
    where = jax.tree.map(lambda x: x.sharding, shapes)
    with jax.set_mesh(mesh), jax.default_matmul_precision("float32"):
        jitted = jax.jit(function, out_shardings=(None, where))
        return jitted.lower(shapes, rows).compile(), mesh


def run_model(*how):
    """(value, metrics, flat gradients), as NumPy."""
    compiled, mesh = compile_model(*how)
    placed = {k: jax.device_put(x, batch_sharding(mesh)) for k, x in batch().items()}
    _, boxed = model_and_shapes()
    (value, metrics), grads = compiled(
        jax.device_put(params(), parameter_shardings(boxed, mesh)), placed
    )
    return float(value), jax.device_get(metrics.metrics), jax.device_get(rules.paths(grads))


@functools.cache
def whole_batch(kind):
    return run_model(kind, 1, {"data": 1}, "gather")


def apart(a, b):
    """Relative distance of two arrays or dicts of arrays, in the Euclidean norm."""
    flat = lambda x: np.concatenate([np.ravel(v) for v in jax.tree.leaves(x)]).astype(np.float64)  # noqa: E731
    return np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b))


@pytest.mark.parametrize(
    ("kind", "chunks", "sizes", "layout"),
    [
        ("softmax", 2, {"data": 1}, "gather"),
        ("softmax", 8, {"data": 1}, "gather"),
        ("sigmoid", 2, {"data": 1}, "gather"),
        ("sigmoid", 8, {"data": 2}, "ring"),
        ("softmax", 2, {"data": 2}, "ring"),
        ("softmax", 8, {"data": 8}, "gather"),
        ("softmax", 1, {"data": 2, "fsdp": 4}, "ring"),
        ("softmax", 2, {"data": 2, "fsdp": 2, "tensor": 2}, "gather"),
        ("sigmoid", 8, {"data": 2, "fsdp": 4}, "ring"),
    ],
)
def test_gradients_are_those_of_the_whole_batch(kind, chunks, sizes, layout):
    value, metrics, grads = run_model(kind, chunks, sizes, layout)
    whole_value, whole_metrics, whole_grads = whole_batch(kind)
    assert value == pytest.approx(whole_value, rel=2e-6)
    assert metrics.keys() == whole_metrics.keys()
    for name, metric in whole_metrics.items():
        assert metrics[name] == pytest.approx(metric, rel=1e-5), name
    assert apart(grads, whole_grads) < 2e-6
    scalars = ["logit_scale"] + ["logit_bias"] * (kind == "sigmoid")
    for name in scalars:
        assert abs(whole_grads[name]) > 1e-3
        assert apart(grads[name], whole_grads[name]) < 2e-6, name


def scratch(chunks, count=BATCH):
    """Bytes of temporary memory of the dual encoder's gradients on one device."""
    compiled, _ = compile_model("softmax", chunks, {"data": 1}, "gather", count)
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_falls_with_the_number_of_micro_batches():
    plain, two, eight = scratch(1), scratch(2), scratch(8)
    assert plain > 1.9 * two  # what is kept of every sample is little beside the activations
    assert two > 3.6 * eight


def test_memory_at_one_size_of_micro_batch_grows_by_the_embeddings_only():
    small, large = scratch(2), scratch(8, 4 * BATCH)
    assert large < 1.1 * small
    # Two embeddings of 8 float32 a sample, and their gradients.
    assert large - small < 1.25 * 3 * BATCH * 2 * 2 * 8 * 4


@functools.cache
def rows():
    """Vectors of the images and of the texts: numbers of so few bits that the linear maps make no rounding error."""
    rng = np.random.default_rng(3)
    few_bits = lambda *shape: (rng.integers(-7, 8, shape) / 8).astype(np.float32)  # noqa: E731
    seeds = np.arange(BATCH, dtype=np.uint32) * 977
    return {"image": few_bits(BATCH, 12), "text": few_bits(BATCH, 10), "sample_seed": seeds}


@functools.cache
def maps():
    rng = np.random.default_rng(4)
    few_bits = lambda *shape: (rng.integers(-7, 8, shape) / 16).astype(np.float32)  # noqa: E731
    return {"image": few_bits(12, WIDTH), "text": few_bits(10, WIDTH)}


class Linear(nn.Module):
    """A linear map of each image and of each text; with `rate`, that share of a sample's inputs is dropped."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, rows):
        outputs = {
            f"logit_{name}": self.param(f"logit_{name}", nn.initializers.ones, ())
            for name in ("scale", "bias")
        }
        for number, name in enumerate(("image", "text")):
            x = rows[name]
            if self.rate:
                x = x * kept(rows["sample_seed"], number, x.shape[1], self.rate)
            linear = nn.Dense(WIDTH, use_bias=False, precision="highest", name=name)
            outputs[f"{name}_embedding"] = linear(x)
        return outputs


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def kept(seeds, salt, width, rate):
    """Which inputs a sample keeps, by its own seed, as models do it: bool [B, width]."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(salt), seeds)
    return jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, (width,)))(keys)


def linear_gradients(kind, scale, shift=0, rate=0.0):
    """Value and flat gradients by the float64 oracle; `shift` changes the seeds after the forward pass."""
    x, w = rows(), {name: m.astype(np.float64) for name, m in maps().items()}
    before, after = (
        {
            name: x[name] * np.asarray(kept(x["sample_seed"] + moved, i, x[name].shape[1], rate))
            for i, name in enumerate(("image", "text"))
        }
        for moved in (np.uint32(0), np.uint32(shift))
    )
    case = oracle.case(
        before["image"] @ w["image"], before["text"] @ w["text"], scale=scale, bias=BIAS
    )
    value, (image, text, *scalars) = getattr(oracle, kind)(case)
    grads = {"image": after["image"].T @ image, "text": after["text"].T @ text}
    return value, grads | dict(zip(("logit_scale", "logit_bias"), scalars, strict=False))


def linear_function(kind, layout, chunks, devices, rate=0.0):
    """`(params, batch) -> ((value, metrics), gradients)` of the linear towers, to be jitted, and its mesh."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    model = Linear(rate)
    losses = make_losses({"pairs": {"kind": kind, "layout": layout, "block_size": 5}}, mesh)

    def function(params, batch):
        encode = lambda p, rows: model.apply({"params": p}, rows)  # noqa: E731
        total = lambda _, outputs: losses(outputs, batch, jnp.float32(0))  # noqa: E731
        return value_and_grad(encode, total, params, batch, chunks)

    return function, mesh


def linear_params(scale):
    kernels = {name: {"kernel": jnp.asarray(kernel)} for name, kernel in maps().items()}
    return kernels | {"logit_scale": jnp.float32(scale), "logit_bias": jnp.float32(BIAS)}


def run_linear(function, mesh, scales):
    """[(scale, value, flat gradients), ...], compiled once."""
    placed = {k: jax.device_put(x, batch_sharding(mesh)) for k, x in rows().items()}
    jitted, found = jax.jit(function), []
    for scale in scales:
        with jax.set_mesh(mesh):
            (value, _), grads = jax.device_get(jitted(linear_params(scale), placed))
        kernels = {name: grads[name]["kernel"] for name in ("image", "text")}
        found.append((scale, value, grads | kernels))
    return found


# On one device the layouts are one program.
@pytest.mark.parametrize(("layout", "devices"), [("gather", 1), ("gather", 8), ("ring", 8)])
@pytest.mark.parametrize("chunks", [1, 2, 8])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_gradients_are_those_of_the_formulas(kind, layout, chunks, devices):
    """W of image = X W has the gradient X' dI, and the scale and the bias have theirs once, not once a micro-batch."""
    tolerances = dict(SCALES)
    found = run_linear(*linear_function(kind, layout, chunks, devices), tolerances)
    for scale, value, grads in found:
        want_value, want = linear_gradients(kind, scale)
        assert oracle.distance(value, want_value) < tolerances[scale]
        for name, gradient in want.items():
            assert np.linalg.norm(gradient) > 1e-3
            assert oracle.distance(grads[name], gradient) < tolerances[scale], (name, scale)


def test_no_sample_travels():
    """A micro-batch takes its rows where they are: no more moves than without it."""
    moved = []
    for chunks in (1, 8):
        function, mesh = linear_function("softmax", "gather", chunks, 8)
        placed = {k: jax.device_put(x, batch_sharding(mesh)) for k, x in rows().items()}
        with jax.set_mesh(mesh):
            text = jax.jit(function).lower(linear_params(1.0), placed).compile().as_text()
        found = hlo.collectives(text)
        moved.append({c.kind for c in found})
        assert not any(c.bytes >= rows()["text"].nbytes for c in found)
    assert moved[1] == moved[0]


@pytest.mark.parametrize(("chunks", "devices"), [(2, 8), (8, 1)])
def test_the_second_run_drops_what_the_first_has_dropped(chunks, devices):
    function, mesh = linear_function("softmax", "gather", chunks, devices, rate=0.4)
    ((_, value, grads),) = run_linear(function, mesh, [14.3])
    want_value, want = linear_gradients("softmax", 14.3, rate=0.4)
    _, other = linear_gradients("softmax", 14.3, rate=0.4, shift=1)  # had it dropped something else
    assert oracle.distance(value, want_value) < 2e-6
    for name, gradient in want.items():
        assert oracle.distance(grads[name], gradient) < 2e-6, name
        assert name == "logit_scale" or oracle.distance(other[name], gradient) > 0.1


@functools.cache
def forms(chunks, devices):
    """A loss that reads outputs of every form: ((value, the outputs as it has seen them), gradients)."""
    mesh = make_mesh(devices=jax.devices()[:devices])

    def encode(params, rows):
        image = rows["image"] @ params["image"]
        return {
            "constant": params["constant"],
            "mean": jnp.mean(image**2, axis=0),
            "three": jnp.repeat(image, 3, axis=0) * jnp.tile(jnp.arange(3.0), len(image))[:, None],
        }

    def losses(_, outputs):
        means = outputs["constant"] * jnp.sum(outputs["mean"])
        places = jnp.arange(3.0 * BATCH) / BATCH
        return means + jnp.mean(places @ outputs["three"]), outputs

    function = functools.partial(value_and_grad, encode, losses, chunks=chunks)
    params = {"image": jnp.asarray(maps()["image"]), "constant": jnp.float32(1.5)}
    placed = {k: jax.device_put(x, batch_sharding(mesh)) for k, x in rows().items()}
    with jax.set_mesh(mesh), jax.default_matmul_precision("float32"):
        return jax.device_get(jax.jit(function)(params, placed))


@pytest.mark.parametrize(("chunks", "devices"), [(1, 1), (8, 1), (2, 8), (8, 8)])
def test_outputs_of_other_forms(chunks, devices):
    """A constant, a mean over samples, and three rows a sample: values in the batch's order, and gradients."""
    (value, outputs), grads = forms(chunks, devices)
    x, w = rows()["image"].astype(np.float64), maps()["image"].astype(np.float64)
    image = x @ w
    mean, three = (image**2).mean(0), (image[:, None] * np.arange(3.0)[:, None]).reshape(-1, WIDTH)
    places = np.arange(3.0 * BATCH) / BATCH
    assert oracle.distance(outputs["three"], three) < 1e-6
    assert oracle.distance(outputs["mean"], mean) < 1e-6
    assert outputs["constant"] == 1.5
    assert oracle.distance(value, 1.5 * mean.sum() + (places @ three).mean()) < 1e-6
    assert oracle.distance(grads["constant"], mean.sum()) < 1e-6
    per_row = 1.5 * 2 * image / BATCH
    per_row += (places.reshape(-1, 3) @ np.arange(3.0))[:, None] / WIDTH
    assert oracle.distance(grads["image"], x.T @ per_row) < 1e-6


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            lambda image: jnp.int32(len(image) // len(image)),
            r"'odd' has no row a sample and is int32.*grad_cache = 4",
        ),
        (
            lambda image: jnp.zeros(len(image) + 1),
            r"'odd' has shape \[65\].*\[17\] for a micro-batch.*grad_cache = 4",
        ),
        (
            lambda image: jnp.zeros((5, len(image))),
            r"'odd' has shape \[5, 64\] for the whole batch and \[5, 16\]",
        ),
        (  # what a sample gives depends on the others
            lambda image: image @ image.T,
            r"'odd' has shape \[64, 64\] for the whole batch and \[16, 16\]",
        ),
    ],
)
def test_outputs_that_cannot_be_joined_are_refused(output, words):
    encode = lambda params, rows: {"odd": output(rows["image"]), "fine": rows["image"]}  # noqa: E731
    with pytest.raises(UserError, match=words):
        value_and_grad(encode, lambda _, outputs: (jnp.float32(0), {}), {}, rows(), 4)


@pytest.mark.parametrize(
    ("chunks", "devices", "words"),
    [
        (5, 1, "batch_size = 64 does not divide into config.grad_cache = 5.*a multiple of 5"),
        (16, 8, "grad_cache = 16 micro-batches on each of 8 device.*a multiple of 128"),
        (2, 5, "batch_size = 64 does not divide over 5 devices"),
        (0, 1, "grad_cache must be at least 1, not 0"),
    ],
)
def test_batches_that_do_not_divide_are_refused(chunks, devices, words):
    function, mesh = linear_function("softmax", "gather", chunks, devices)
    with jax.set_mesh(mesh), pytest.raises(UserError, match=words):
        jax.eval_shape(function, linear_params(1.0), rows())


def test_sums_of_bfloat16_are_float32():
    """Beside the first and the last micro-batch, the others are too small to be added in bfloat16."""
    sizes = np.full(16, 2.0**-9, np.float32)
    sizes[[0, -1]] = 1.0

    def encode(params, rows):
        values = rows["size"].astype(jnp.bfloat16) * params["w"]
        return {"each": values, "mean": 16 * jnp.mean(values)}

    total = lambda _, outputs: (outputs["each"].astype(jnp.float32).sum(), outputs["mean"])  # noqa: E731
    params, batch = {"w": jnp.bfloat16(1.0)}, {"size": jnp.asarray(sizes)}
    (_, mean), grads = jax.jit(functools.partial(value_and_grad, encode, total, chunks=16))(
        params, batch
    )
    assert grads["w"].dtype == mean.dtype == jnp.bfloat16
    assert jnp.bfloat16(sizes.sum()) > 2.0
    assert grads["w"] == mean == jnp.bfloat16(sizes.sum())
