"""Cross entropy of images against all classes at once, whose embeddings the model gives."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from clipjax.errors import UserError
from clipjax.losses import inputs


def class_cross_entropy(
    image_BxD: jax.Array,
    class_CxD: jax.Array,
    labels_B: jax.Array,
    scale: jax.Array | float,
    *,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean of -log softmax(scale * image @ class.T) at the labels (prompt learning: Zhou et al. 2022, CoOp, eq. 1).

    Cost: B C words for the logits, on each device those of its images; classes are whole on all devices.

    Args:
      image_BxD: image embeddings; their images may be split over a mesh.
      class_CxD: class embeddings.
      labels_B: int32, the class of each image; -1: none, and the image counts for nothing. C or more is no class: the
        loss is NaN.
      scale: of the logits.
      label_smoothing: share of the target that is spread over all classes.

    Returns:
      float32 scalar, 0 if no image has a class, and the metric `accuracy`.

    Raises:
      UserError: a label smoothing outside [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing must be at least 0 and below 1, not {label_smoothing}.")
    product = jnp.matmul(image_BxD, class_CxD.T, precision="highest")
    logits_BxC = jnp.asarray(scale, jnp.float32) * product.astype(jnp.float32)
    labelled_B = labels_B >= 0
    log_p_BxC = jax.nn.log_softmax(logits_BxC)
    of_label_B = jnp.take_along_axis(log_p_BxC, jnp.maximum(labels_B, 0)[:, None], axis=1)[:, 0]
    loss_B = -(1 - label_smoothing) * of_label_B - label_smoothing * jnp.mean(log_p_BxC, axis=1)
    right_B = jnp.argmax(logits_BxC, axis=1) == labels_B
    count = jnp.maximum(jnp.sum(labelled_B), 1)
    mean = lambda x_B: jnp.sum(jnp.where(labelled_B, x_B, 0.0)) / count  # noqa: E731
    return mean(loss_B), {"accuracy": mean(right_B)}


def classify(
    outputs: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    *,
    embedding: str = "image_embedding",
    centres: str = "class_centres",
    labels: str = "labels",
    scale: str | float = "logit_scale",
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`class_cross_entropy` as an entry of a config's losses; `scale` is an output or a number."""
    labels_Bxl = batch[labels]
    if labels_Bxl.ndim != 2 or labels_Bxl.shape[1] != 1:
        raise UserError(
            f"class_cross_entropy takes one label a sample, but the field {labels!r} is {list(labels_Bxl.shape)}; set "
            "count = 1 of the feature that makes it."
        )
    return class_cross_entropy(
        outputs[embedding],
        outputs[centres],
        labels_Bxl[:, 0],
        inputs.scalar(outputs, scale),
        label_smoothing=label_smoothing,
    )
