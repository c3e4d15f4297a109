"""Which similarity a checkpoint is evaluated by."""

from clipjax.errors import UserError


def blend(params, config, *, share: float):
    """Embeddings whose similarity is share * global + (1 - share) * local; a trained checkpoint has share 1."""
    if not 0 <= share <= 1:
        raise UserError(f"The share of the global similarity must be from 0 to 1, not {share}.")
    config.model.blend = float(share)
    return params, config
