"""What the blocks of a transformer can be, stated once."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """Settings that every block of a stack shares. Towers have most of them as fields of the same names.

    Attributes:
      heads: attention heads, a divisor of the width.
      mlp_dim: width F of the MLP's hidden layer.
      activation: of the MLP, a key of `ACTIVATIONS`; "swiglu" has its own.
      eps: of every LayerNorm.
      norm_order: "pre", x + f(norm(x)), or "post", x + norm(f(x)) (EVA-02-E).
      layer_scale: initial gain of each residual branch, None for none.
      mlp: "mlp" or "swiglu" (clipjax/models/mlp.py).
      mlp_norm: LayerNorm over the MLP's hidden layer (Shleifer et al. 2021, NormFormer; EVA-02).
      qkv_bias: whether queries, keys and values have biases.
      key_bias: if False, keys have none of these: their part of the parameter is not used (BEiT, EVA).
      qk_norm: LayerNorm over each head's queries and keys (Dehghani et al. 2023, ViT-22B, section 2.1).
      attention_norm: LayerNorm before attention's output projection (Wang et al. 2022, Sub-LN; EVA-02).
      rotation: which entries of a head make a pair for rotary positions, "adjacent" or "half" (clipjax/models/rope.py).
      causal: whether a token sees only itself and those before it.
      attention_impl: what computes attention, one of `attention.IMPLEMENTATIONS`.
      quantize: see `layers.matmul`; for attention's projections and the MLP.
      experts: MLPs to choose from in each block that is a mixture (clipjax/models/moe.py); 0 for no such blocks.
      experts_per_token: how many of them a token goes to.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    heads: int
    mlp_dim: int
    activation: str = "gelu"
    eps: float = 1e-5
    norm_order: str = "pre"
    layer_scale: float | None = None
    mlp: str = "mlp"
    mlp_norm: bool = False
    qkv_bias: bool = True
    key_bias: bool = True
    qk_norm: bool = False
    attention_norm: bool = False
    rotation: str = "adjacent"
    causal: bool = False
    attention_impl: str = "einsum"
    quantize: str | None = None
    experts: int = 0
    experts_per_token: int = 2
    dtype: str = "float32"
    param_dtype: str = "float32"

    @property
    def dtypes(self) -> dict[str, str]:
        """The keywords `dtype` and `param_dtype` that every layer takes."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}


def block_options(tower: Any, **others: Any) -> BlockOptions:
    """The options of a tower's blocks: its fields of the same names, and `others`."""
    names = {field.name for field in dataclasses.fields(BlockOptions)} - others.keys()
    return BlockOptions(**{n: getattr(tower, n) for n in names if hasattr(tower, n)}, **others)
