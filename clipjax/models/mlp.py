"""The MLPs of the blocks."""

import jax
from flax import linen as nn

from clipjax.errors import UserError
from clipjax.models.layers import Dense, LayerNorm, activation
from clipjax.models.options import BlockOptions
from clipjax.registry import nearest

MLPS = ("mlp", "swiglu")


def check_mlp(name: str) -> None:
    """UserError with the nearest name if there is no such MLP."""
    if name not in MLPS:
        raise UserError(f"There is no MLP {name!r}{nearest(name, MLPS)}.")


class Mlp(nn.Module):
    """Dense, activation, Dense; or SwiGLU (Shazeer 2020): silu(gate) * value, Dense.

    Parameters: `fc_in`, `fc_out`, for SwiGLU `fc_gate` beside `fc_in`, with `mlp_norm` `norm` before `fc_out`.

    Attributes:
      options: `mlp`, `mlp_dim`, `mlp_norm`, `activation`, `quantize` and the adapters count.
      out_std: standard deviation of `fc_out`'s initialisation; None: mlp_dim ** -0.5.
    """

    options: BlockOptions
    out_std: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., W] -> [..., W]."""
        o, width = self.options, x.shape[-1]
        check_mlp(o.mlp)
        how = dict(quantize=o.quantize, **o.dtypes)

        def into(name: str) -> jax.Array:
            std = (2 * width) ** -0.5
            return Dense(o.mlp_dim, ("embed", "mlp"), std, lora=o.lora(name), name=name, **how)(x)

        if o.mlp == "swiglu":
            hidden = activation("silu")(into("fc_gate")) * into("fc_in")
        else:
            hidden = activation(o.activation)(into("fc_in"))
        if o.mlp_norm:
            hidden = LayerNorm(o.eps, name="norm", **o.dtypes)(hidden)
        out_std = self.out_std or o.mlp_dim**-0.5
        return Dense(width, ("mlp", "embed"), out_std, lora=o.lora("fc_out"), name="fc_out", **how)(
            hidden
        )
