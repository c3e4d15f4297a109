"""What the blocks of a transformer can be, stated once."""

import dataclasses
from typing import Any

from clipjax.errors import UserError
from clipjax.registry import nearest

# The products of a block that may have an adapter.
ADAPTED = ("query", "key", "value", "out", "fc_in", "fc_gate", "fc_out")


@dataclasses.dataclass(frozen=True)
class Lora:
    """A low-rank adapter of one product: its rank r, and the factor alpha / r of what it adds."""

    rank: int
    scale: float


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
      dropout: share of the residual stream's elements that are set to zero at the input of every block (what is left is
        scaled up) while there is a `sample_seed`.
      drop_path: share of samples for which a residual branch is left out while there is a `sample_seed` (Huang et al.
        2016, stochastic depth): 0 in the first block, rising linearly to this in the last.
      lora_rank: rank r of the adapters (Hu et al. 2022, LoRA): each product in `lora_targets` adds
        (lora_alpha / r) x A B, with parameters `lora_a` and `lora_b` beside its kernel. B starts at zero, so an adapter
        changes nothing before it is trained. 0: no adapters. See clipjax/models/adapters.py.
      lora_alpha: see `lora_rank`.
      lora_targets: of `ADAPTED`, the products with an adapter.
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
    dropout: float = 0.0
    drop_path: float = 0.0
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ("query", "value")
    dtype: str = "float32"
    param_dtype: str = "float32"

    @property
    def dtypes(self) -> dict[str, str]:
        """The keywords `dtype` and `param_dtype` that every layer takes."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def lora(self, name: str) -> Lora | None:
        """The adapter of the product `name`, None if it has none."""
        return lora(self, name)


def lora(settings: Any, name: str) -> Lora | None:
    """The adapter that `settings` (with `lora_rank`, `lora_alpha`, `lora_targets`) give the product `name`, if any.

    Raises:
      UserError: a rank below 0, or a target that no block has.
    """
    if settings.lora_rank < 0:
        raise UserError(f"lora_rank must be at least 0, not {settings.lora_rank}.")
    for target in settings.lora_targets if settings.lora_rank else ():
        if target not in ADAPTED:
            raise UserError(f"lora_targets cannot name {target!r}{nearest(target, ADAPTED)}.")
    if not settings.lora_rank or name not in settings.lora_targets:
        return None
    return Lora(settings.lora_rank, settings.lora_alpha / settings.lora_rank)


def check_rates(settings: Any) -> None:
    """UserError if `dropout` or `drop_path` of a tower or its options is not at least 0 and below 1."""
    for name in ("dropout", "drop_path"):
        if not 0.0 <= getattr(settings, name) < 1.0:
            raise UserError(
                f"{name} must be at least 0 and below 1, not {getattr(settings, name)}."
            )


def block_options(tower: Any, **others: Any) -> BlockOptions:
    """The options of a tower's blocks: its fields of the same names, and `others`."""
    names = {field.name for field in dataclasses.fields(BlockOptions)} - others.keys()
    return BlockOptions(**{n: getattr(tower, n) for n in names if hasattr(tower, n)}, **others)
