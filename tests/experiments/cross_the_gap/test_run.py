"""The arms, the paper's evaluation and the recipe. Meshes, micro-batches and resume: tests/experiments/test_all.py."""

from pathlib import Path

import jax
import numpy as np
import pytest

from clipjax.config import load_config
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.losses import KINDS
from clipjax.mesh import make_mesh
from clipjax.prepare import prepare
from clipjax.recipe import load_recipe
from clipjax.registry import lookup
from experiments.cross_the_gap.sources import ConceptTexts
from tests.experiments.cross_the_gap.tiny import unit

FOLDER = Path(__file__).parents[3] / "experiments" / "cross_the_gap"


def config(name):
    return load_config(f"{FOLDER}/configs/{name}", base_config())


@pytest.mark.parametrize("arm", ["scale_100", "scale_1", "image_image"])
def test_arms(arm):
    made = prepare(config(f"small.py:{arm}"), make_mesh({"data": 1}, jax.devices()[:1]))
    assert made.config.model.init_scale == (1.0 if arm == "scale_1" else 100.0)
    assert ("view" in made.batch) == (arm == "image_image")
    assert not made.remarks
    with pytest.raises(UserError, match="there is no arm 'full'"):
        config("small.py:full")


def test_paper():
    evals = config("paper.py:ViT-L-14").evals
    assert evals.coco.inversion.to_dict() == {"steps": (1000,), "patches": 4}
    assert evals.roxford_medium.ignored == ("junk",)
    images = [n for n, e in evals.items() if e.kind.endswith("ImageRetrieval")]
    assert len({name.partition("_")[0] for name in images}) == 15
    with pytest.raises(UserError, match="there is no backbone 'RN50'"):
        config("paper.py:RN50")


def test_recipe():
    steps = load_recipe(f"{FOLDER}/recipe.py").steps
    assert sum(step.kind == "train" for step in steps.values()) == 9


def test_keywords_and_names():
    names, keywords = ConceptTexts(), ConceptTexts(keywords=True)
    assert len(names) == 849 > len(keywords) > 800
    by_concept = {r["concept"]: r["text"] for r in names}
    for record in keywords:
        words = record["text"].split(", ")
        assert by_concept[record["concept"]] not in words
        assert len(words) <= 3


def test_the_intra_modal_term():
    section = dict(config("small.py:image_image").losses["images"])
    loss = lookup(section.pop("kind"), KINDS, "loss")
    rng = np.random.default_rng(0)
    a, b = (unit(rng.normal(size=(8, 6))).astype(np.float32) for _ in range(2))
    outputs = {"image_embedding": a, "view_embedding": b}
    value, _ = jax.jit(lambda o: loss(o, {}, **section))(outputs)
    logits = 10.0 * a.astype(float) @ b.astype(float).T
    rows, columns = (np.log(np.exp(x).sum(1)) - np.diag(x) for x in (logits, logits.T))
    assert float(value) == pytest.approx((rows.mean() + columns.mean()) / 2, rel=2e-6)
