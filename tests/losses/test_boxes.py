"""The grounding loss by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.errors import UserError
from clipjax.losses import grounding
from clipjax.losses.regions.grounding import region_grounding
from clipjax.mesh import batch_sharding, make_mesh


def case(images=8, regions=3):
    """(predictions, boxes, mask); predictions lie partly outside the frame."""
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(size=(images, regions, 2, 2)), axis=2)
    boxes = corners.reshape(images, regions, 4).astype(np.float32)
    pred = (boxes + 0.3 * rng.normal(size=boxes.shape)).astype(np.float32)
    return pred, boxes, rng.uniform(size=boxes.shape[:2]) < 0.6


def test_a_tenth_off_in_every_coordinate():
    _, boxes, mask = case()
    loss, _ = grounding(boxes - 0.1, boxes, mask)
    assert float(loss) == pytest.approx(0.01, rel=1e-5)


def test_value_and_gradient():
    pred, boxes, mask = case()
    value, grad = jax.value_and_grad(lambda p: grounding(p, boxes, mask)[0])(pred)
    error = np.where(mask[..., None], pred.astype(np.float64) - boxes, 0.0)
    assert float(value) == pytest.approx((error**2).sum() / (4 * mask.sum()), rel=1e-6)
    np.testing.assert_allclose(grad, error / (2 * mask.sum()), rtol=1e-6)


@pytest.mark.parametrize(
    ("pred", "iou"),
    [
        ((0.0, 0.0, 0.5, 0.5), 1.0),
        ((0.5, 0.5, 0.0, 0.0), 1.0),  # corners in the other order
        ((-3.0, -1.0, 0.5, 0.5), 1.0),  # clipped
        ((0.0, 0.0, 1.0, 0.5), 0.5),
        ((0.25, 0.25, 0.75, 0.75), 1 / 7),
        ((0.5, 0.0, 1.0, 0.5), 0.0),  # they touch
        ((2.0, 2.0, 3.0, 3.0), 0.0),  # outside: nothing is left
    ],
)
def test_iou(pred, iou):
    box = np.array([[[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]]])
    both = np.array([[pred, pred]])
    _, metrics = grounding(both, box, np.array([[True, False]]))
    assert float(metrics["iou"]) == pytest.approx(iou, rel=1e-6)
    _, metrics = grounding(box, box, np.array([[True, True]]))  # the second is empty
    assert float(metrics["iou"]) == pytest.approx(0.5)


def test_places_without_a_region_do_not_matter():
    pred, boxes, mask = case()
    step = jax.value_and_grad(grounding, has_aux=True)
    (value, metrics), grad = step(pred, boxes, mask)
    junk = [np.where(mask[..., None], x, np.float32(np.nan)) for x in (pred, boxes)]
    (other, other_metrics), other_grad = step(*junk, mask)
    assert float(value) == float(other)
    assert metrics == other_metrics
    assert np.array_equal(grad, other_grad)
    assert not np.any(grad[~mask])


def test_no_region():
    pred, boxes, mask = case()
    (value, metrics), grad = jax.value_and_grad(grounding, has_aux=True)(pred, boxes, 0 * mask)
    assert float(value) == float(metrics["iou"]) == 0.0
    assert not np.any(grad)


def test_entry_of_a_config():
    pred, boxes, mask = case()
    mask[[2, 3]] = False
    mask[0] = True
    want, found = grounding(pred, boxes, mask)
    share = mask.any(1).mean()
    outputs, batch = dict(grounded_boxes=pred), dict(boxes=boxes, region_mask=mask)
    for mesh in (None, make_mesh()):
        given = (outputs, batch)
        if mesh is not None:
            given = jax.device_put(given, batch_sharding(mesh))
        value, metrics = jax.jit(lambda o, b, mesh=mesh: region_grounding(o, b, mesh=mesh))(*given)
        assert float(value) == pytest.approx(float(share * want), rel=1e-6)
        assert float(metrics["iou"]) == pytest.approx(float(found["iou"]), rel=1e-6)
        assert float(metrics["annotated"]) == pytest.approx(share)


def test_refusals():
    pred, boxes, mask = case()
    with pytest.raises(UserError, match=r"boxes \[B, M, 4\] twice and a mask \[B, M\], not \[8, 3"):
        grounding(pred[..., :3], boxes, mask)
    with pytest.raises(UserError, match=r"and \[8, 2\]"):
        grounding(pred, boxes, mask[:, :2])
    with pytest.raises(UserError, match=r"'region_mask'.*config\.data\.features\.regions"):
        region_grounding({"grounded_boxes": pred}, {})
    batch = dict(boxes=jnp.asarray(boxes), region_mask=jnp.asarray(mask))
    with pytest.raises(UserError, match=r"'grounded_boxes'.*regions\.kind = 'prompter'"):
        region_grounding({}, batch)
