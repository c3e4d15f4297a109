"""CL2L, and the non-contrastive losses beside it: BarLIP, SiamLIP and BYOLIP, SwALIP. Outputs: see model.py."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.errors import UserError
from clipjax.losses import softmax_contrastive
from clipjax.losses.assignment import sinkhorn

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def cl2l(
    outputs,
    batch,
    *,
    mesh=None,
    label_smoothing=0.1,
    total="average",
    gather_gradient=True,
    layout="gather",
    block_size=None,
):
    """(G + A * L) / (1 + A): G of the weak views, L the mean over all A * A pairs of strong ones; "sum": twice that.

    G has no label smoothing. `gather_gradient=False` is the released code's rule on several devices: each direction has
    a gradient only to its rows, so embeddings get about half of it.
    """
    settings = dict(mesh=mesh, layout=layout, block_size=block_size)
    if total not in ("average", "sum"):
        raise UserError(f"The setting `total` of cl2l must be 'average' or 'sum', not {total!r}.")

    def pair(image_BxD, text_BxD, scale, smoothing=0.0):
        loss = functools.partial(softmax_contrastive, **settings, label_smoothing=smoothing)
        if gather_gradient:
            return loss(image_BxD, text_BxD, scale)
        stop, none_B = jax.lax.stop_gradient, jnp.zeros(len(image_BxD))
        rows, metrics = loss(image_BxD, stop(text_BxD), scale, text_weight=none_B)
        return rows + loss(stop(image_BxD), text_BxD, scale, image_weight=none_B)[0], metrics

    value, metrics = pair(
        *(outputs[k] for k in ("image_embedding", "text_embedding", "logit_scale"))
    )
    metrics |= {"global": value}
    if "local_image_embedding" in outputs:
        image, text = outputs["local_image_embedding"], outputs["local_text_embedding"]  # [B, A, D]
        views, scale = image.shape[1], outputs["local_logit_scale"]
        a, b = (np.array(n) for n in zip(*itertools.product(range(views), repeat=2), strict=True))
        pairs = image[:, a].swapaxes(0, 1), text[:, b].swapaxes(0, 1)  # compiled once for all
        one = lambda _, xy: (None, pair(*xy, scale, label_smoothing)[0])  # noqa: E731
        local = jnp.mean(jax.lax.scan(one, None, pairs)[1])
        metrics |= {"local": local, "local_logit_scale": scale}
        value = (value + views * local) / (1 + views)
    return value * (2 if total == "sum" else 1), metrics


def barlow(outputs, batch, *, off_diagonal=0.005, scale=0.025):
    """BarLIP: the cross-correlation C [P, P] of images and texts over the global batch, towards the identity.

    Mean over the weak pair and the A * A strong ones of scale * [sum (C_ii - 1)^2 + off_diagonal * sum C_ij^2].
    Cost a pair and device: 2 b P P FLOPs (6 with gradients), P P elements kept and added up over the devices.
    """
    image, text = (outputs[f"barlow_{side}"].astype(jnp.float32) for side in ("image", "text"))
    weight_PxP = jnp.where(jnp.eye(image.shape[-1], dtype=bool), 1.0, off_diagonal)
    found = []
    for a, b in _pairs(image.shape[1]):
        c_PxP = _einsum("bp,bq->pq", image[:, a], text[:, b]) / len(image)
        found.append(jnp.sum(weight_PxP * jnp.square(c_PxP - jnp.eye(len(c_PxP)))))
    return scale * sum(found) / len(found), {}


def siamese_cosine(outputs, batch):
    """SiamLIP, or BYOLIP with a momentum copy's targets: mean of 2 - 2 cos(prediction, target of the other side).

    Two terms of the weak views, 2 A * A of the strong ones; no gradient to the targets.
    """
    total, count = 0.0, 0
    for side, other in (("image", "text"), ("text", "image")):
        p_BxVxP = _unit(outputs[f"siamese_{side}_prediction"])
        v_BxVxP = jax.lax.stop_gradient(_unit(outputs[f"siamese_{other}_target"]))
        cosine_VxV = _einsum("bvp,bwp->vw", p_BxVxP, v_BxVxP) / len(p_BxVxP)
        pairs = _pairs(len(cosine_VxV))
        total, count = total + sum(2 - 2 * cosine_VxV[a, b] for a, b in pairs), count + len(pairs)
    return total / count, {}


def swapped_assignment(outputs, batch, *, epsilon=0.05, iterations=3):
    """SwALIP: logits of the strong views (a, b) towards the Sinkhorn assignment of (1 - a, 1 - b), both directions.

    It keeps the B x B matrices of four pairs and two directions, rows split over the devices.
    """
    image, text = outputs["local_image_embedding"], outputs["local_text_embedding"]
    if image.shape[1] != 2:
        raise UserError(f"swapped_assignment needs two strong views, not {image.shape[1]}.")
    total = 0.0
    for x, y in ((image, text), (text, image)):
        cosines = {(a, b): _einsum("bd,cd->bc", x[:, a], y[:, b]) for a in (0, 1) for b in (0, 1)}
        for (a, b), cosine_BxB in cosines.items():
            target_BxB = sinkhorn(cosines[1 - a, 1 - b], epsilon=epsilon, iterations=iterations)
            total += _cross_entropy(outputs["local_logit_scale"] * cosine_BxB, target_BxB)
    return total / 8, {}


def prototype_assignment(outputs, batch, *, epsilon=0.05, iterations=3, temperature=0.1):
    """SwALIP's first version: similarities to K prototypes towards the other side's assignment, for the weak views."""
    image, text = (outputs[f"{side}_prototypes"] for side in ("image", "text"))  # [B, K]
    targets = [sinkhorn(x, epsilon=epsilon, iterations=iterations) for x in (text, image)]
    found = [
        _cross_entropy(x / temperature, t) for x, t in zip((image, text), targets, strict=True)
    ]
    return sum(found) / 2, {}


def _pairs(views):
    """The weak pair (0, 0) and all pairs of strong views."""
    return [(0, 0), *itertools.product(range(1, views), repeat=2)]


def _unit(x):
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def _cross_entropy(logits_BxK, target_BxK):
    return -jnp.mean(jnp.sum(target_BxK * jax.nn.log_softmax(logits_BxK), axis=-1))
