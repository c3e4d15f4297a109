"""Between the two stages."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from clipjax.errors import UserError


def spread_q(params: Any, config: ConfigDict) -> tuple[Any, ConfigDict]:
    """Every word gets the shared disambiguation Q_0 as its own, and training draws relaxed samples from now on."""
    if not config.model.get("shared"):
        raise UserError("spread_q needs a checkpoint of the first stage, with config.model.shared.")
    for name in ("disambiguation", "disambiguation_bias"):
        shared = params[name]
        params[name] = np.tile(shared, (config.model.vocabulary, *[1] * (shared.ndim - 1)))
    config.model.update(shared=False, relaxed=True)
    return params, config
