"""What targets may say of a tile beside which pairs are positive."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.losses import sigmoid_contrastive, softmax_contrastive
from clipjax.losses.pairs import Pairs
from clipjax.losses.softmax import _Softmax
from clipjax.losses.targets import SameId, diagonal
from clipjax.mesh import make_mesh
from tests.losses import oracle
from tests.losses.test_contrastive import B, check, embeddings


@flax.struct.dataclass
class Odd(SameId):
    """Pairs of which row and column numbers add up to a multiple of three are left out, positives among them."""

    place_R: jax.Array
    place_C: jax.Array

    def rows(self):
        return super().rows() | {"place": self.place_R}

    def columns(self):
        return super().columns() | {"place": self.place_C}

    @staticmethod
    def left_out(rows, columns):
        return (rows["place"][:, None] + columns["place"]) % 3 == 0


@pytest.mark.parametrize(
    ("name", "layout", "smoothing"),
    [("softmax", "gather", 0.0), ("softmax", "ring", 0.1), ("sigmoid", "gather", 0.1)],
)
def test_left_out(name, layout, smoothing):
    rng = np.random.default_rng(0)
    ids, place = rng.integers(0, 9, (2, B)), jnp.arange(B)
    left_out = (np.add.outer(np.arange(B), np.arange(B)) % 3) == 0

    def wanted(case):
        case.valid &= ~left_out
        return getattr(oracle, name)(case)

    check(
        name,
        *embeddings(),
        expected=dict(rows=ids[0][:, None] == ids[1], smoothing=smoothing),
        wanted=wanted,
        targets=Odd(*map(jnp.asarray, ids), place, place),
        label_smoothing=smoothing,
        mesh=make_mesh(devices=jax.devices()[:4]),
        layout=layout,
        block_size=5,
    )


def test_how_many_are_left_out():
    place = jnp.arange(B)
    targets = Odd(place, place, place, place)
    _, metrics = softmax_contrastive(*embeddings(), 10.0, targets=targets, block_size=7)
    assert float(metrics["left_out"]) == pytest.approx(B / 3)  # of rows that keep their positive
    _, metrics = sigmoid_contrastive(*embeddings(), 10.0, -2.0, targets=targets)
    assert "left_out" not in metrics


def test_the_diagonal_said_or_not():
    image, text = embeddings(noise=0.1)
    step = jax.value_and_grad(softmax_contrastive, argnums=(0, 1, 2), has_aux=True)
    said, unsaid = (step(image, text, 100.0, targets=t) for t in (diagonal(B), None))
    jax.tree.map(np.testing.assert_array_equal, said, unsaid)


def test_a_pair_that_rounding_brings_back_pulls_no_harder_than_any():
    """The second pass counts a pair that the first left out: far above the top, at scale 100 e^190."""
    kernel = _Softmax(diagonal(2).tile, lambda rows, columns: jnp.zeros((2, 2), bool), apart=True)
    final = dict(max=jnp.full(2, -1.0), log_sum_exp=jnp.zeros(2))
    side = dict(
        id=jnp.arange(2),
        statistics=final,
        gradient=dict(log_sum_exp=jnp.ones(2), positive=jnp.zeros(2)),
    )
    similarity = jnp.array([[0.5, 0.9], [-1.0, 0.5]])
    pairs = Pairs(similarity, jnp.ones((2, 2), bool), side, side, {"scale": jnp.float32(100.0)})
    np.testing.assert_array_equal(kernel.similarity_gradient(pairs), [[0.0, 200.0], [200.0, 0.0]])
