"""The intra-modal term that CLIP's loss lacks."""

from clipjax.losses import softmax_contrastive


def image_to_image(outputs, batch, *, mesh=None, scale=10.0):
    """Softmax contrastive loss between two views of each image (Mu et al. 2022, SLIP; temperature 1 / `scale`)."""
    del batch
    views = outputs["image_embedding"], outputs["view_embedding"]
    value, metrics = softmax_contrastive(*views, scale, mesh=mesh)
    return value, {"accuracy": metrics["image_to_text_accuracy"]}
