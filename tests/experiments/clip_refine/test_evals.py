"""Gap, alignment, uniformity."""

import numpy as np
import pytest

from clipjax.errors import UserError
from experiments.clip_refine.evals import Geometry, Norms, geometry


class Fake:
    """An encoder whose images are vectors, and whose texts name one."""

    def images(self, params, images):
        return np.stack(images)

    def texts(self, params, texts):
        return np.array([[float(x) for x in text.split()] for text in texts])


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("chunk", [3, 1024])
def test_pair_by_pair(chunk):
    rng = np.random.default_rng(0)
    image, text = unit(rng.normal(size=(7, 5)) + 1), unit(rng.normal(size=(7, 5)) - 1)
    every = [*image, *text]
    near = [
        np.exp(-2 * sum((a - b) ** 2))
        for i, a in enumerate(every)
        for j, b in enumerate(every)
        if i < j
    ]
    found = geometry(image, text, chunk)
    assert found["gap"] == pytest.approx(sum((sum(image) / 7 - sum(text) / 7) ** 2))
    assert found["alignment"] == pytest.approx(2 - 2 * np.mean(np.sum(image * text, 1)))
    assert found["uniformity"] == pytest.approx(np.log(np.mean(near)))


def test_evaluator():
    rng = np.random.default_rng(1)
    image, text = rng.normal(size=(2, 5, 4))
    says = [" ".join(map(str, row)) for row in text]
    records = [
        dict(image=[x, 0 * x], text=[t, "0 0 0 0"]) for x, t in zip(image, says, strict=True)
    ]
    evaluator = Geometry("g", Fake(), records, chunk=2)
    assert evaluator.run(None) == pytest.approx(geometry(image, text))
    assert evaluator.protocol["pairs"] == 5
    with pytest.raises(UserError, match="Record 0 of evaluator 'g' has no field 'caption'"):
        Geometry("g", Fake(), records, text_field="caption")


class Raw:
    """Features that are not normalised, from pixels and words."""

    def batch(self, images, texts):
        read = lambda text: np.array(text.split(), float)  # noqa: E731
        return {"image": np.stack(images), "text": np.stack([read(text) for text in texts])}

    def outputs(self, params, batch, only):
        return dict(zip(only, (batch["image"], batch["text"]), strict=True))


def test_norms_and_entropy_of_raw_features():
    rng = np.random.default_rng(2)
    image, text = rng.normal(size=(2, 70, 3))
    records = [
        dict(image=x, text=" ".join(map(repr, map(float, t))))
        for x, t in zip(image, text, strict=True)
    ]
    found = Norms("n", Raw(), records, count=70).run(None)
    assert found["image"] == pytest.approx(np.mean([sum(x**2) ** 0.5 for x in image]))
    assert found["text"] == pytest.approx(np.mean([sum(x**2) ** 0.5 for x in text]))
    entropy = []
    for part in (slice(0, 64), slice(64, 70)):
        rows = []
        for x in image[part]:
            weights = [np.exp(x @ t) for t in text[part]]
            rows.append(-sum(w / sum(weights) * np.log(w / sum(weights)) for w in weights))
        entropy.append(np.mean(rows))
    assert found["entropy"] == pytest.approx(np.mean(entropy))
