"""Parameter surgery: the crop head is taken off."""

KIND = "experiments._template.model:CropEncoder"


def plain(params, config):
    """A `dual_encoder` of a `CropEncoder`."""
    params.pop("crop_head")
    config.model.kind = "dual_encoder"
    return params, config
