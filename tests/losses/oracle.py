"""The contrastive losses in float64, as whole matrices, with gradients from the textbook formulas."""

from types import SimpleNamespace

import numpy as np


def case(
    image,
    text,
    *,
    scale=14.3,
    bias=-3.0,
    rows=None,
    columns=None,
    smoothing=0.0,
    image_mask=None,
    text_mask=None,
    image_weight=None,
    text_weight=None,
):
    """Everything that a loss is given, in float64; `rows` and `columns` are targets [R, C] of the two directions."""
    size_r, size_c = len(image), len(text)
    rows = np.eye(size_r, size_c) if rows is None else rows
    full = lambda x, n: np.ones(n) if x is None else np.asarray(x, np.float64)  # noqa: E731
    return SimpleNamespace(
        image=np.asarray(image, np.float64),
        text=np.asarray(text, np.float64),
        scale=float(scale),
        bias=float(bias),
        rows=np.asarray(rows, np.float64),
        columns=np.asarray(rows if columns is None else columns, np.float64),
        smoothing=smoothing,
        valid=np.outer(full(image_mask, size_r), full(text_mask, size_c)) > 0,
        images=int(full(image_mask, size_r).sum()),
        image_weight=full(image_weight, size_r),
        text_weight=full(text_weight, size_c),
    )


def softmax(c):
    """(value, gradients by image, text, scale)."""
    cosine = c.image @ c.text.T
    value, d = 0.0, np.zeros_like(cosine)
    for transposed, target, weight in (
        (False, c.rows, c.image_weight),
        (True, c.columns, c.text_weight),
    ):
        turn = (lambda x: x.T) if transposed else (lambda x: x)
        logits, target, valid = c.scale * turn(cosine), turn(target), turn(c.valid)
        target = np.where(valid, target, 0.0)
        counted = target.sum(1) > 0
        terms = np.zeros_like(logits)
        for i in np.flatnonzero(counted):
            z = np.where(valid[i], logits[i], -np.inf)
            lse = z.max() + np.log(np.exp(z - z.max()).sum())
            q = (1 - c.smoothing) * target[i] / target[i].sum()
            q = q + c.smoothing * valid[i] / valid[i].sum()
            # The sum of q (lse - z): the difference first, since the two may nearly cancel.
            value += weight[i] * (q[valid[i]] * (lse - z[valid[i]])).sum() / counted.sum() / 2
            terms[i] = weight[i] * (np.exp(z - lse) - q) / counted.sum() / 2
        d += turn(terms)
    return value, _gradients(c, cosine, d)[:3]


def separated_softmax(c):
    """`softmax` for one-hot targets whose loss may be e-20: from the rivals' terms, never as a difference of logits."""
    cosine = c.image @ c.text.T
    value, d = 0.0, np.zeros_like(cosine)
    for axis in (0, 1):
        odds = np.exp(c.scale * (cosine - np.expand_dims(np.diag(cosine), axis)))
        np.fill_diagonal(odds, 0.0)
        rivals = odds.sum(axis, keepdims=True)
        value += np.log1p(rivals).mean() / 2
        slope = odds / (1 + rivals)
        np.fill_diagonal(slope, -(rivals / (1 + rivals)).ravel())
        d += slope / len(cosine) / 2
    return value, _gradients(c, cosine, d)[:3]


def sigmoid(c):
    """(value, gradients by image, text, scale, bias)."""
    cosine = c.image @ c.text.T
    logits = c.scale * cosine + c.bias
    target = (1 - c.smoothing) * c.rows + c.smoothing / 2
    weight = (c.image_weight[:, None] + c.text_weight[None, :]) / 2 * c.valid / c.images
    losses = target * np.logaddexp(0, -logits) + (1 - target) * np.logaddexp(0, logits)
    slope = (1 - target) / (1 + np.exp(-logits)) - target / (1 + np.exp(logits))
    return (weight * losses).sum(), _gradients(c, cosine, weight * slope)


def regions(region, text, mask, scale, threshold):
    """(value, gradients by region [B, M, D], text, scale, texts left out a region) of CLOC's region loss.

    One region at a time, over a list of the others that count; the loss is formed from the rivals' odds, so it may be
    as small as it likes.
    """
    region, text = (np.asarray(x, np.float64) for x in (region, text))
    exists = [tuple(place) for place in np.argwhere(mask)]
    d_region, d_text, d_scale = np.zeros_like(region), np.zeros_like(text), 0.0
    value, dropped = 0.0, 0
    for own in exists:
        rivals = []
        for other in exists:
            if other != own:
                alike = text[own] @ text[other] - threshold
                assert abs(alike) > 1e-6, "float32 would have to guess"
                rivals += [other] if alike < 0 else []
        dropped += len(exists) - 1 - len(rivals)
        # Region to text: the rivals' texts; text to region: their regions.
        for mine, d_mine, theirs, d_theirs in (
            (region, d_region, text, d_text),
            (text, d_text, region, d_region),
        ):
            ahead = [mine[own] @ (theirs[other] - theirs[own]) for other in rivals]
            odds = np.exp(scale * np.array(ahead))
            value += np.log1p(odds.sum()) / 2 / len(exists)
            for other, gap, odd in zip(rivals, ahead, odds, strict=True):
                share = odd / (1 + odds.sum()) / 2 / len(exists)
                d_mine[own] += share * scale * (theirs[other] - theirs[own])
                d_theirs[other] += share * scale * mine[own]
                d_theirs[own] -= share * scale * mine[own]
                d_scale += share * gap
    return value, (d_region, d_text, d_scale), dropped / max(len(exists), 1)


def _gradients(c, cosine, d):
    return c.scale * d @ c.text, c.scale * d.T @ c.image, (d * cosine).sum(), d.sum()


def distance(got, want):
    """Relative norm of the difference."""
    want = np.asarray(want, np.float64)
    got = np.asarray(got, np.float64)
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)
