"""A dual encoder with random weights, for tests."""

import functools

import jax
import numpy as np
from flax import linen as nn

from clipjax.data.tokenizers.clip_bpe import ClipBPE
from clipjax.encode.encoder import Encoder
from clipjax.mesh import make_mesh
from clipjax.models import (
    example_batch,
    image_section,
    initialise,
    make_model,
    model_section,
    text_section,
)

LENGTH = 12


@functools.cache
def config():
    image = image_section(size=16, patch=4, width=16, depth=1, heads=2, unroll=0)
    text = text_section(length=LENGTH, width=16, depth=1, heads=2, unroll=0)
    preprocess = dict(resize="squash", interpolation="bicubic", crop_fraction=1.0)
    return {"model": model_section(image, text, embed_dim=16), "preprocess": preprocess}


@functools.cache
def encoder(devices=1):
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    return Encoder(make_model(config()["model"]), config(), ClipBPE(LENGTH), mesh, batch_size=8)


@functools.cache
def params(seed=0):
    module = encoder().module
    batch = {k: np.zeros(x.shape, x.dtype) for k, x in example_batch(config()["model"]).items()}
    fresh = jax.jit(lambda key: nn.unbox(initialise(module, key, batch)))
    return jax.device_get(fresh(jax.random.key(seed)))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
