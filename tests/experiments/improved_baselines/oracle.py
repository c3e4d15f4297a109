"""The losses in float64, value and gradients from the formulas; embeddings are [B, views, width]."""

import numpy as np

from tests.losses import oracle


def cl2l(o, smoothing, total, gathered=True):
    """Of outputs `image`, `text` [B, D], `h_image`, `h_text` [B, A, D], `scale`, `h_scale`."""
    count = o["h_image"].shape[1]
    factor = (2 if total == "sum" else 1) / (1 + count)
    value, (image, text, scale) = _pair(o["image"], o["text"], o["scale"], 0.0, gathered)
    grads = {"image": factor * image, "text": factor * text, "scale": factor * scale}
    grads |= {"h_image": np.zeros(o["h_image"].shape), "h_text": np.zeros(o["h_text"].shape)}
    grads["h_scale"], value = 0.0, factor * value
    for a in range(count):
        for b in range(count):
            found, (image, text, scale) = _pair(
                o["h_image"][:, a], o["h_text"][:, b], o["h_scale"], smoothing, gathered
            )
            share = factor / count
            value += share * found
            grads["h_image"][:, a] += share * image
            grads["h_text"][:, b] += share * text
            grads["h_scale"] += share * scale
    return value, grads


def _pair(image, text, scale, smoothing, gathered):
    if gathered:
        return oracle.softmax(oracle.case(image, text, scale=scale, smoothing=smoothing))
    # Each direction by itself, and of its gradients only that of its rows.
    one, none = np.ones(len(image)), np.zeros(len(image))
    settings = dict(scale=scale, smoothing=smoothing)
    rows = oracle.softmax(oracle.case(image, text, image_weight=one, text_weight=none, **settings))
    columns = oracle.softmax(
        oracle.case(image, text, image_weight=none, text_weight=one, **settings)
    )
    return rows[0] + columns[0], (rows[1][0], columns[1][1], rows[1][2] + columns[1][2])


def view_pairs(views):
    strong = range(1, views)
    return [(0, 0)] + [(a, b) for a in strong for b in strong]


def barlow(image, text, off_diagonal=0.005, scale=0.025):
    image, text = np.asarray(image, np.float64), np.asarray(text, np.float64)
    batch, views, width = image.shape
    pairs, value = view_pairs(views), 0.0
    d_image, d_text = np.zeros(image.shape), np.zeros(text.shape)
    for a, b in pairs:
        for i in range(width):
            for j in range(width):
                c = image[:, a, i] @ text[:, b, j] / batch
                weight = scale / len(pairs) * (1.0 if i == j else off_diagonal)
                off = c - (i == j)
                value += weight * off**2
                d_image[:, a, i] += 2 * weight * off * text[:, b, j] / batch
                d_text[:, b, j] += 2 * weight * off * image[:, a, i] / batch
    return value, (d_image, d_text)


def siamese(predictions, targets):
    """Of (image, text) predictions and targets: the squared distance of unit vectors, which is 2 - 2 cos."""
    p, v = ([np.asarray(x, np.float64) for x in xs] for xs in (predictions, targets))
    batch, views, width = p[0].shape
    pairs = view_pairs(views)
    value, grads = 0.0, [np.zeros(x.shape) for x in p]
    for side in (0, 1):
        for a, b in pairs:
            for row in range(batch):
                x, y = p[side][row, a], v[1 - side][row, b]
                length = np.linalg.norm(x)
                x, y = x / length, y / np.linalg.norm(y)
                share = 1 / (2 * len(pairs) * batch)
                value += share * ((x - y) ** 2).sum()
                grads[side][row, a] += (
                    share * 2 * (np.eye(width) - np.outer(x, x)) @ (x - y) / length
                )
    return value, grads


def plan(similarity, epsilon=0.05, iterations=3):
    """The released order: columns to 1 / K, rows to 1 / B, and at last rows to 1."""
    q = np.exp(similarity / epsilon)
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(0) * q.shape[1]
        q /= q.sum(1)[:, None] * q.shape[0]
    return q * q.shape[0]


def cross_entropy(logits, target):
    """(value, gradient by the logits)."""
    value, d = 0.0, np.zeros(logits.shape)
    for i, (z, t) in enumerate(zip(logits, target, strict=True)):
        log_share = z - z.max() - np.log(np.exp(z - z.max()).sum())
        value -= t @ log_share / len(logits)
        d[i] = (t.sum() * np.exp(log_share) - t) / len(logits)
    return value, d


def swapped(image, text, scale):
    image, text = np.asarray(image, np.float64), np.asarray(text, np.float64)
    value, d_image, d_text, d_scale = 0.0, np.zeros(image.shape), np.zeros(text.shape), 0.0
    for a in range(2):
        for b in range(2):
            cosine = image[:, a] @ text[:, b].T
            other = image[:, 1 - a] @ text[:, 1 - b].T
            for logits, target, back in (
                (cosine, plan(other), False),
                (cosine.T, plan(other.T), True),
            ):
                found, d = cross_entropy(scale * logits, target)
                d = (d.T if back else d) / 8
                value += found / 8
                d_image[:, a] += scale * d @ text[:, b]
                d_text[:, b] += scale * d.T @ image[:, a]
                d_scale += (d * cosine).sum()
    return value, (d_image, d_text, d_scale)


def prototypes(image, text, temperature=0.1):
    image, text = np.asarray(image, np.float64), np.asarray(text, np.float64)
    of_image, of_text = (
        cross_entropy(x / temperature, plan(y)) for x, y in ((image, text), (text, image))
    )
    grads = [d / temperature / 2 for _, d in (of_image, of_text)]
    return (of_image[0] + of_text[0]) / 2, grads
