"""The transformers once more, in float64 numpy with plain loops, written from the papers' formulas."""

import math

import jax
import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])

ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def random_params(module, *args, seed=0, **kwargs):
    """Float32 parameters in which nothing is zero or one, so that a forgotten bias or scale shows."""
    import flax.linen as nn

    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *args, **kwargs))["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "gamma"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        std = 0.3
        if name == "qkv_kernel":
            std = leaf.shape[-4] ** -0.5
        elif name == "kernel":
            std = leaf.shape[-2] ** -0.5
        return (std * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def float64(tree):
    return jax.tree.map(np.float64, tree)


def dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0.0)


def layer_norm(x, p, eps):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * p["scale"] + p["bias"]


def softmax_average(query_d, key_Mxd, value_Mxd, seen_M):
    """One query of one head."""
    logits_M = key_Mxd @ query_d / math.sqrt(len(query_d))
    weights_M = np.where(seen_M, np.exp(logits_M - logits_M[seen_M].max()), 0.0)
    return weights_M @ value_Mxd / weights_M.sum()


def attention(x_NxW, p, seen_NxN, qk_norm, eps):
    tokens = len(x_NxW)
    heads = []
    for h in range(p["qkv_kernel"].shape[2]):
        q, k, v = (x_NxW @ p["qkv_kernel"][:, i, h] + p["qkv_bias"][i, h] for i in range(3))
        if qk_norm:
            q, k = layer_norm(q, p["query_norm"], eps), layer_norm(k, p["key_norm"], eps)
        heads.append([softmax_average(q[n], k, v, seen_NxN[n]) for n in range(tokens)])
    return dense(np.concatenate(heads, axis=1), p["out"])


def mlp(x, p, activation):
    return dense(ACTIVATIONS[activation](dense(x, p["fc_in"])), p["fc_out"])


def transformer(x_NxW, p, module, seen_NxN=None):
    """`module` has the settings: a Transformer, or a tower."""
    if seen_NxN is None:
        seen_NxN = np.ones((len(x_NxW), len(x_NxW)), bool)
    for layer in range(module.depth):
        b = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p["blocks"])
        y = layer_norm(x_NxW, b["norm_1"], module.eps)
        y = attention(y, b["attention"], seen_NxN, module.qk_norm, module.eps)
        x_NxW = x_NxW + y * (b["scale_1"]["gamma"] if module.layer_scale is not None else 1.0)
        y = mlp(layer_norm(x_NxW, b["norm_2"], module.eps), b["mlp"], module.activation)
        x_NxW = x_NxW + y * (b["scale_2"]["gamma"] if module.layer_scale is not None else 1.0)
    return x_NxW


def map_pool(x_NxW, p, module, seen_N=None):
    seen_N = np.ones(len(x_NxW), bool) if seen_N is None else seen_N
    query = dense(p["probe"], p["query"])[0]
    keys, values = dense(x_NxW, p["key"]), dense(x_NxW, p["value"])
    size = len(query) // module.heads
    parts = [slice(h * size, (h + 1) * size) for h in range(module.heads)]
    heads = [softmax_average(query[s], keys[:, s], values[:, s], seen_N) for s in parts]
    y = dense(np.concatenate(heads), p["out"])
    return y + mlp(layer_norm(y, p["norm"], module.eps), p["mlp"], module.activation)


def patches(image_HxWx3, p, size):
    """[N, width], in reading order; what fills no patch is left out."""
    rows, columns = image_HxWx3.shape[0] // size, image_HxWx3.shape[1] // size
    kernel = p["kernel"].reshape(-1, p["kernel"].shape[-1])
    cut = [
        image_HxWx3[r * size : (r + 1) * size, c * size : (c + 1) * size].reshape(-1)
        for r in range(rows)
        for c in range(columns)
    ]
    return np.stack(cut) @ kernel + p.get("bias", 0.0)


def conv_stem(image_HxWx3, p, module):
    x = image_HxWx3
    for i in range(int(math.log2(module.patch))):
        kernel = p[f"conv_{i}"]["kernel"]
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        side = x.shape[0] // 2
        y = np.zeros((side, side, kernel.shape[-1]))
        for r in range(side):
            for c in range(side):
                window = padded[2 * r : 2 * r + 3, 2 * c : 2 * c + 3]
                y[r, c] = np.einsum("ijk,ijkl->l", window, kernel)
        x = ACTIVATIONS[module.activation](layer_norm(y, p[f"norm_{i}"], module.eps))
    return patches(x, p["out"], 1)


def sincos(row, column, width):
    """One position, MoCo v3: a quarter of the width each for sin(x), cos(x), sin(y), cos(y)."""
    quarter = width // 4
    rates = [10_000 ** (-i / (quarter - 1)) for i in range(quarter)]
    waves = [(math.sin, column), (math.cos, column), (math.sin, row), (math.cos, row)]
    return [wave(place * rate) for wave, place in waves for rate in rates]


def vit(params, image_BxHxWx3, module):
    """(pooled [B, W], tokens [B, N, W])."""
    return _stack(_vit(params, image, module) for image in image_BxHxWx3)


def _vit(p, image, module):
    stem = conv_stem(image, p["stem"], module) if module.stem == "conv" else None
    x = patches(image, p["stem"], module.patch) if stem is None else stem
    has_class = module.pool == "class"
    if module.positions == "learned":
        position = p["position_embedding"]
    else:
        side = module.size // module.patch
        grid = [sincos(r, c, module.width) for r in range(side) for c in range(side)]
        position = np.array([[0.0] * module.width] * has_class + grid)
    first = [p["class_token"] + position[:1]] if has_class else []
    first += [p["register_tokens"]] if module.registers else []
    x = np.concatenate([*first, x + position[has_class:]])
    if module.pre_norm:
        x = layer_norm(x, p["norm_pre"], module.eps)
    x = transformer(x, p["transformer"], module)
    if module.final_norm == "tokens":
        x = layer_norm(x, p["norm_post"], module.eps)
    tokens = x[has_class + module.registers :]
    pools = {
        "class": lambda: x[0],
        "average": lambda: tokens.mean(0),
        "map": lambda: map_pool(tokens, p["pool"], module),
    }
    pooled = pools[module.pool]()
    if module.final_norm == "pooled":
        pooled = layer_norm(pooled, p["norm_post"], module.eps)
    return pooled, tokens


def text(params, ids_BxL, module, mask_BxL=None):
    """(pooled [B, W], tokens [B, L, W])."""
    masks = np.ones(ids_BxL.shape, bool) if mask_BxL is None else mask_BxL
    return _stack(_text(params, *row, module) for row in zip(ids_BxL, masks, strict=True))


def _text(p, ids, seen, module):
    length = len(ids)
    x = p["token_embedding"][ids] + p["position_embedding"][:length]
    seen_LxL = np.tile(seen, (length, 1))
    if module.attention == "causal":
        seen_LxL = seen_LxL & (np.arange(length)[:, None] >= np.arange(length))
    x = layer_norm(transformer(x, p["transformer"], module, seen_LxL), p["norm_post"], module.eps)
    if module.pool == "map":
        return map_pool(x, p["pool"], module, seen), x
    return x[list(ids).index(module.end_token) if module.pool == "eot" else -1], x


def _stack(pairs):
    first, second = zip(*pairs, strict=True)
    return np.stack(first), np.stack(second)
