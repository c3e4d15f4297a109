"""The note's toy: linear encoders of two modalities whose features are apart by a constant, tuned on 24 noisy pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipjax.losses import similarity_distill, softmax_contrastive
from experiments.clip_refine.evals import geometry
from experiments.clip_refine.losses import RAW, random_alignment

U, W, D, BATCH, STEPS = 8, 32, 12, 8, 300  # latents, inputs, features
NORM, OFFSET, NOISE = 8.0, 6.0, 0.2


def planted(seed):
    """The start's parameters, 24 training pairs and 300 held-out ones, as lists of the two modalities."""
    rng = np.random.default_rng(seed)
    mix_2xUxW = rng.normal(size=(2, U, W)) * W**-0.5
    axes_DxD = np.linalg.qr(rng.normal(size=(D, D)))[0]

    def pairs(count):
        latent = rng.normal(size=(count, U))
        return [
            (latent @ m + NOISE * rng.normal(size=(count, W))).astype(np.float32) for m in mix_2xUxW
        ]

    # Both find the latents, but for the noise; the offset lies across them.
    params = [
        {
            "kernel": NORM * U**-0.5 * np.linalg.pinv(m) @ axes_DxD[:U],
            "bias": sign * OFFSET * axes_DxD[-1],
        }
        for m, sign in zip(mix_2xUxW, (1, -1), strict=True)
    ]
    return jax.tree.map(jnp.float32, params), pairs(24), pairs(300)


def encode(params, inputs):
    return [x @ p["kernel"] + p["bias"] for p, x in zip(params, inputs, strict=True)]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def contrastive(features, taught, seeds, samples):
    features = [z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in features]
    return softmax_contrastive(*features, 100.0)[0]


def refine(features, taught, seeds, samples):
    distilled, _ = similarity_distill(*features, 1.0, *taught, 1.0, own_share=0.5)
    outputs = dict(zip(RAW, features, strict=True))
    return distilled + random_alignment(outputs, {"sample_seed": seeds}, samples)[0]


def tune(loss, start, pairs):
    optimizer = optax.sgd(0.01, 0.9)

    def step(carry, batch):
        params, state = carry
        rows, seeds, samples = batch

        def total(params):
            return loss(encode(params, rows), encode(start, rows), seeds, samples)

        updates, state = optimizer.update(jax.grad(total)(params), state)
        return (optax.apply_updates(params, updates), state), None

    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(24) for _ in range(STEPS * BATCH // 24)]).reshape(
        STEPS, BATCH
    )
    seeds = np.arange(STEPS * BATCH, dtype=np.uint32).reshape(STEPS, BATCH)
    samples = np.arange(STEPS, dtype=np.float32) * BATCH
    batches = ([x[order] for x in pairs], seeds, samples)
    (params, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), batches))(start)
    return params


def measures(params, pairs):
    """(gap, mean rank of the right text)."""
    image, text = (unit(np.asarray(z)) for z in encode(params, pairs))
    similarity = image @ text.T
    ranks = (similarity >= np.diag(similarity)[:, None]).sum(1)
    return geometry(image, text)["gap"], ranks.mean()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_7_the_gap_closes_and_the_ranking_holds(seed):
    start, train, held_out = planted(seed)
    gap, rank = measures(start, held_out)
    refined_gap, refined_rank = measures(tune(refine, start, train), held_out)
    _, continued_rank = measures(tune(contrastive, start, train), held_out)
    assert refined_gap < 0.5 * gap
    assert refined_rank <= rank
    assert continued_rank > refined_rank
