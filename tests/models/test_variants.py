"""The named variants: their sizes and costs against published ones and closed formulas."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from clipjax import rules
from clipjax.cost import flops
from clipjax.errors import UserError
from clipjax.models import boxed_params, example_batch, make_model
from clipjax.models.variants import RESNETS, VARIANTS, model_config

# Millions of parameters and forward GFLOPs a pair (2 for each multiply-add): open_clip's model_profile.csv.
PUBLISHED = {
    "ViT-B-32": (151, 14.8),
    "ViT-B-16": (150, 41.1),
    "ViT-L-14": (428, 175),
    "ViT-L-14-336": (428, 396),
    "ViT-H-14": (986, 382),
    "ViT-g-14": (1367, 581),
    "ViT-bigG-14": (2540, 1066),
    "ViT-B-16-SigLIP": (203, 46.4),
    "ViT-SO400M-14-SigLIP-384": (878, 723),
}

GOLDEN = {  # (image tower, text tower), each with its projection
    "ViT-B-32": (87_849_216, 63_428_096),
    "ViT-B-32-256": (87_860_736, 63_428_096),
    "ViT-B-16": (86_192_640, 63_428_096),
    "ViT-B-16-plus-240": (117_213_824, 91_163_520),
    "ViT-L-14": (303_966_208, 123_650_304),
    "ViT-L-14-336": (304_293_888, 123_650_304),
    "ViT-H-14": (632_076_800, 354_032_640),
    "ViT-H-14-378": (632_682_240, 354_032_640),
    "ViT-g-14": (1_012_645_632, 354_032_640),
    "ViT-bigG-14": (1_844_907_264, 694_659_840),
    "ViT-B-16-SigLIP": (92_884_224, 110_271_744),
    "ViT-B-16-SigLIP-256": (92_930_304, 110_271_744),
    "ViT-B-16-SigLIP-384": (93_176_064, 110_271_744),
    "ViT-B-16-SigLIP-512": (93_520_128, 110_271_744),
    "ViT-L-16-SigLIP-256": (315_956_224, 336_194_560),
    "ViT-L-16-SigLIP-384": (316_283_904, 336_194_560),
    "ViT-SO400M-14-SigLIP": (427_680_704, 449_679_600),
    "ViT-SO400M-14-SigLIP-384": (428_225_600, 449_734_896),
    "ViT-B-32-SigLIP2-256": (94_552_320, 282_303_744),
    "ViT-B-16-SigLIP2": (92_884_224, 282_303_744),
    "ViT-B-16-SigLIP2-256": (92_930_304, 282_303_744),
    "ViT-B-16-SigLIP2-384": (93_176_064, 282_303_744),
    "ViT-B-16-SigLIP2-512": (93_520_128, 282_303_744),
    "ViT-L-16-SigLIP2-256": (315_956_224, 565_570_560),
    "ViT-L-16-SigLIP2-384": (316_283_904, 565_570_560),
    "ViT-L-16-SigLIP2-512": (316_742_656, 565_570_560),
    "ViT-SO400M-14-SigLIP2": (427_680_704, 707_782_896),
    "ViT-SO400M-14-SigLIP2-378": (428_225_600, 707_782_896),
    "ViT-SO400M-16-SigLIP2-256": (427_888_064, 707_782_896),
    "ViT-SO400M-16-SigLIP2-384": (428_256_704, 707_782_896),
    "ViT-SO400M-16-SigLIP2-512": (428_772_800, 707_782_896),
    "ViT-gopt-16-SigLIP2-256": (1_163_168_256, 708_225_648),
    "ViT-gopt-16-SigLIP2-384": (1_163_659_776, 708_225_648),
}


def abstract(name):
    config = model_config(name)
    model = make_model(config)
    batch = example_batch(config)
    return model, nn.unbox(boxed_params(model, batch)), batch


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def formula(name):
    """Parameters of (image tower, text tower), projections included, from the table's numbers alone."""
    v = VARIANTS[name]

    def blocks(t):
        norms, attention = 4 * t.width, 4 * t.width**2 + 4 * t.width
        return t.depth * (norms + attention + 2 * t.width * t.mlp_dim + t.mlp_dim + t.width)

    w, e = v.image.width, v.embed_dim
    image = blocks(v.image) + 3 * v.patch**2 * w + (v.size // v.patch) ** 2 * w + 2 * w
    text = blocks(v.text) + (v.vocab_size + v.length + 2) * v.text.width + v.text.width * e
    if v.family == "clip":
        return image + 2 * w + 2 * w + w * e, text  # class token and its position, norm_pre, head
    # Patch bias, probe, attention, norm and MLP of the pooling; the text head has a bias.
    pool = w + 4 * w**2 + 4 * w + 2 * w + 2 * w * v.image.mlp_dim + v.image.mlp_dim + w
    return image + w + pool, text + e


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_and_costs(name):
    model, params, batch = abstract(name)
    millions, gflops = PUBLISHED[name]
    assert round(size(params) / 1e6) == millions
    count = flops.count(lambda p, b: model.apply({"params": p}, b), params, batch)
    assert count / 1e9 == pytest.approx(gflops, rel=0.004)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameter_counts(name):
    _, params, _ = abstract(name)
    image = size([params["image"], params.get("image_head", {})])
    text = size([params["text"], params["text_head"]])
    assert (image, text) == GOLDEN[name]
    assert (image, text) == formula(name)
    scalars = 1 if VARIANTS[name].family == "clip" else 2
    assert size(params) == image + text + scalars


def test_every_parameter_names_its_axes():
    for name in ("ViT-B-16", "ViT-B-16-SigLIP"):
        config = model_config(name)
        boxed = jax.eval_shape(make_model(config).init, jax.random.key(0), example_batch(config))
        for path, leaf in rules.paths(boxed["params"]).items():
            assert isinstance(leaf, nn.LogicallyPartitioned), path
            assert len(leaf.names) == leaf.value.ndim, path


def test_quickgelu_changes_the_activation_only():
    plain, quick = model_config("ViT-B-32"), model_config("ViT-B-32-quickgelu")
    assert (quick.image.activation, quick.text.activation) == ("quick_gelu", "quick_gelu")
    quick.image.activation, quick.text.activation = "gelu", "gelu"
    assert quick.to_dict() == plain.to_dict()


def test_siglip_settings():
    config = model_config("ViT-SO400M-14-SigLIP")
    assert (config.init_scale, config.init_bias) == (10.0, -10.0)
    assert (config.image.pool, config.text.pool, config.text.attention) == ("map", "last", "full")
    assert config.text.length == 16
    assert config.image.eps == config.text.eps == 1e-6
    assert jnp.allclose(jnp.array(config.mean), 0.5)


@pytest.mark.parametrize("name", ["ViT-B-61", "ViT-B-16-SigLIP-quickgelu", "vit-b-16"])
def test_refusals(name):
    with pytest.raises(UserError, match="ViT-B-16"):
        model_config(name)


# open_clip's: parameters of the image tower, its running means and variances, the text tower's parameters.
RESNET_COUNTS = {
    "RN50": (38_316_896, 53_248, 63_690_240),
    "RN101": (56_259_936, 105_472, 63_428_096),
    "RN50x4": (87_137_080, 109_760, 91_163_520),
    "RN50x16": (167_328_912, 193_920, 123_650_304),
    "RN50x64": (420_380_352, 410_624, 202_877_952),
}


@pytest.mark.parametrize("name", RESNETS)
def test_resnets(name):
    _, params, _ = abstract(name)
    weights, statistics, text = RESNET_COUNTS[name]
    assert size(params["image"]) == weights + statistics
    assert size([params["text"], params["text_head"]]) == text
    quick = model_config(f"{name}-quickgelu")
    assert quick.text.activation == "quick_gelu"


class Traced(nn.Module):
    """Counts how often it is traced."""

    sizes: object
    times = 0

    @nn.compact
    def __call__(self, batch):
        type(self).times += 1
        return nn.Dense(self.sizes[0])(batch["x"])


def test_a_module_is_traced_once_for_its_shapes():
    batch = {"x": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    first, again = (boxed_params(Traced((4,)), batch) for _ in range(2))
    assert Traced.times == 1
    first["Dense_0"].pop("kernel")  # a caller's tree is its own
    assert again["Dense_0"]["kernel"].shape == (3, 4)
    assert boxed_params(Traced((4,)), batch)["Dense_0"]["kernel"].shape == (3, 4)
    assert boxed_params(Traced((5,)), batch)["Dense_0"]["kernel"].shape == (3, 5)
    for width in (6, 7):  # a list cannot be hashed
        found = boxed_params(Traced([width]), batch)
        assert found["Dense_0"]["kernel"].shape == (3, width)
    assert Traced.times == 4
