"""LoRA adapters (Hu et al. 2022) added to a trained model, and merged into it: stages, pure functions on parameters.

Towers have adapters by their settings `lora_rank`, `lora_alpha` and `lora_targets` (see `BlockOptions`), so a run can
also begin with them: `config.init = {"": PATH, ...}` does not fill them, a stage does. To train nothing else:

>>> config.optim.freeze = ((r".*/lora_[ab]", False), (".*", True))

A product of kernel [W, F] adds (alpha / r) x A B with `lora_a` [W, r] and `lora_b` [r, F] beside `kernel`. The fused
`qkv_kernel` [W, 3, H, d] has, for the t of query, key and value that are targets, `lora_a` [W, t, r] and `lora_b`
[t, r, H, d]. In a stack each has a leading axis of layers.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from clipjax import rules
from clipjax.errors import UserError
from clipjax.models import model_parts
from clipjax.models.attention import QKV
from clipjax.models.options import lora
from clipjax.registry import nearest

# The kernels of a transformer's blocks, and of Bert's layers, whose MLP has other names.
_KERNEL = re.compile(r".*/(?:blocks|layer_\d+)/(?:attention/|mlp/)?(\w+?)(?:/kernel)?")
_NAMES = {"mlp_in": "fc_in", "mlp_out": "fc_out"}


def add_lora(
    params: Mapping[str, Any],
    config: ConfigDict,
    *,
    rank: int,
    alpha: float = 16.0,
    targets: Sequence[str] = ("query", "value"),
    parts: Sequence[str] = ("image", "text"),
    seed: int = 0,
) -> tuple[dict[str, Any], ConfigDict]:
    """Gives towers adapters; the model computes what it did, since their second factors are zero.

    Args:
      params: nested dict of a model's parameters.
      config: of the run; `model` is read.
      rank: r.
      alpha: see `BlockOptions.lora_rank`.
      targets: products with an adapter, of `options.ADAPTED`.
      parts: the towers that get them, dotted where nested ("image", "teacher.text").
      seed: of the first factors.

    Returns:
      New parameters and a new config, whose towers have these settings.

    Raises:
      UserError: no such tower, one that has adapters already or cannot have any, or a setting that is not valid.
    """
    config, flat = ConfigDict(config.to_dict(), type_safe=False), rules.paths(params)
    sections, added = dict(model_parts(config.model)), {}
    if rank < 1:
        raise UserError(f"The rank of adapters must be at least 1, not {rank}.")
    for part in parts:
        if part not in sections:
            raise UserError(f"The model has no part {part!r}{nearest(part, sections)}.")
        section = sections[part]
        if section.get("lora_rank"):
            raise UserError(f"config.model.{part} has adapters already; merge them first.")
        section.update(lora_rank=rank, lora_alpha=float(alpha), lora_targets=tuple(targets))
        prefix, found = part.replace(".", "/") + "/", {}
        for path, kernel in flat.items():
            if path.startswith(prefix):
                found |= _fresh(path, kernel, section, seed)
        added |= found
        if not found:
            raise UserError(
                f"config.model.{part} (of kind {section['kind']!r}) has no products called {', '.join(targets)}."
            )
    return rules.tree(flat | added), config


def merge_lora(params: Mapping[str, Any], config: ConfigDict) -> tuple[dict[str, Any], ConfigDict]:
    """Adds every adapter to its kernel: the same model (but for rounding), without adapters.

    Args:
      params: nested dict of a model's parameters.
      config: of the run; `model` is read.

    Returns:
      New parameters (kernels in their dtypes, summed in float32) and a new config, with `lora_rank` 0.

    Raises:
      UserError: the model has no adapters.
    """
    config, flat = ConfigDict(config.to_dict(), type_safe=False), rules.paths(params)
    merged = False
    for part, section in model_parts(config.model):
        if not section.get("lora_rank"):
            continue
        merged, prefix = True, part.replace(".", "/") + "/"
        for path in [p for p in flat if p.startswith(prefix) and p.endswith("/lora_a")]:
            base = path.removesuffix("lora_a")
            a, b = flat.pop(path), flat.pop(f"{base}lora_b")
            kernel = f"{base}kernel" if f"{base}kernel" in flat else f"{base}qkv_kernel"
            flat[kernel] = _merged(kernel, flat[kernel], a, b, section)
        section.lora_rank = 0
    if not merged:
        raise UserError("The model has no adapters to merge: no part's lora_rank is above 0.")
    return rules.tree(flat), config


def _targets(path: str, section: Mapping[str, Any]) -> list[str]:
    """The products of the kernel at a path that have adapters: of a fused one several, of others one or none."""
    matched = _KERNEL.fullmatch(path)
    name = _NAMES.get(matched[1], matched[1]) if matched else ""
    settings = SimpleNamespace(**dict(section))
    return [n for n in (QKV if name == "qkv_kernel" else (name,)) if lora(settings, n)]


def _fresh(path: str, kernel: Any, section: Mapping[str, Any], seed: int) -> dict[str, jax.Array]:
    """The factors of the adapter of the kernel at a path; none if it has none."""
    count, rank, fused = len(_targets(path, section)), section["lora_rank"], _is_fused(path)
    if not count:
        return {}
    if fused:
        *layers, width, _, heads, size = kernel.shape
        shape_a, shape_b = (*layers, width, count, rank), (*layers, count, rank, heads, size)
    else:
        *layers, width, features = kernel.shape
        shape_a, shape_b = (*layers, width, rank), (*layers, rank, features)
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
    a = jax.random.normal(key, shape_a, jnp.float32) * width**-0.5
    base = path.rpartition("/")[0]
    return {
        f"{base}/lora_a": a.astype(kernel.dtype),
        f"{base}/lora_b": jnp.zeros(shape_b, kernel.dtype),
    }


def _merged(path: str, kernel: Any, a: Any, b: Any, section: Mapping[str, Any]) -> jax.Array:
    scale, how = section["lora_alpha"] / section["lora_rank"], dict(precision="highest")
    wide, a, b = (jnp.asarray(x, jnp.float32) for x in (kernel, a, b))
    if _is_fused(path):
        chosen = jnp.array([QKV.index(name) for name in _targets(path, section)])
        more = jnp.einsum("...wtr,...trhd->...wthd", a, b, **how)
        wide = wide.at[..., chosen, :, :].add(scale * more)
    else:
        wide = wide + scale * jnp.matmul(a, b, **how)
    return wide.astype(kernel.dtype)


def _is_fused(path: str) -> bool:
    return path.endswith("/qkv_kernel")
