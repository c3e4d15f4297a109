"""The transformers once more, in float64 numpy with plain loops, written from the papers' formulas."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import numpy as np

from clipjax.models.options import BlockOptions

_erf = np.vectorize(math.erf, otypes=[np.float64])

ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
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


def settings(module):
    """The options of a module's blocks, by name: of a Transformer, or of a tower, which may lack some."""
    options = getattr(module, "options", module)
    fields = dataclasses.fields(BlockOptions)
    found = {f.name: getattr(options, f.name, f.default) for f in fields}
    return SimpleNamespace(**found, depth=module.depth, moe_layers=module.moe_layers)


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


def turned(x_d, angles, pairs):
    """A head's entries, each pair turned by its angle in the plane."""
    half = len(x_d) // 2
    y = np.empty(len(x_d))
    for i, angle in enumerate(angles):
        a, b = (2 * i, 2 * i + 1) if pairs == "adjacent" else (i, i + half)
        y[a] = math.cos(angle) * x_d[a] - math.sin(angle) * x_d[b]
        y[b] = math.sin(angle) * x_d[a] + math.cos(angle) * x_d[b]
    return y


def attention(x_NxW, p, seen_NxN, options, rotation=None):
    """`rotation`: (angles [N, d/2], pairs)."""
    tokens = len(x_NxW)
    heads = []
    for h in range(p["qkv_kernel"].shape[2]):
        q, k, v = (x_NxW @ p["qkv_kernel"][:, i, h] for i in range(3))
        if options.qkv_bias:
            q, v = q + p["qkv_bias"][0, h], v + p["qkv_bias"][2, h]
            k = k + p["qkv_bias"][1, h] if options.key_bias else k
        if options.qk_norm:
            q = layer_norm(q, p["query_norm"], options.eps)
            k = layer_norm(k, p["key_norm"], options.eps)
        if rotation is not None:
            angles, pairs = rotation
            q, k = (np.stack([turned(*row, pairs) for row in zip(y, angles)]) for y in (q, k))  # noqa: B905
        heads.append([softmax_average(q[n], k, v, seen_NxN[n]) for n in range(tokens)])
    y = np.concatenate(heads, axis=1)
    if options.attention_norm:
        y = layer_norm(y, p["norm"], options.eps)
    return dense(y, p["out"])


def mlp(x, p, activation):
    return dense(ACTIVATIONS[activation](dense(x, p["fc_in"])), p["fc_out"])


def block_mlp(x, p, options):
    hidden = dense(x, p["fc_in"])
    if options.mlp == "swiglu":
        hidden = ACTIVATIONS["silu"](dense(x, p["fc_gate"])) * hidden
    else:
        hidden = ACTIVATIONS[options.activation](hidden)
    if options.mlp_norm:
        hidden = layer_norm(hidden, p["norm"], options.eps)
    return dense(hidden, p["fc_out"])


def mixture(x_NxW, p, options):
    """Each token by itself: its best experts' answers, weighted by a softmax over their scores alone."""
    y = np.zeros(x_NxW.shape)
    for n, x in enumerate(x_NxW):
        scores = x @ p["router"]["kernel"]
        best = np.argsort(-scores)[: options.experts_per_token]
        weights = np.exp(scores[best] - scores[best].max())
        for weight, e in zip(weights / weights.sum(), best, strict=True):
            expert = jax.tree.map(lambda leaf, e=e: leaf[e], p["experts"])
            y[n] += weight * block_mlp(x, expert, options)
    return y


def transformer(x_NxW, p, module, seen_NxN=None, rotation=None):
    """`module` has the settings: a Transformer, or a tower."""
    options = settings(module)
    if seen_NxN is None:
        seen_NxN = np.ones((len(x_NxW), len(x_NxW)), bool)
    mixtures = (options.moe_layers or options.depth) if options.experts else 0
    for layer in range(options.depth):
        first_mixture = options.depth - mixtures
        is_mixture = layer >= first_mixture
        stack, at = (p["moe"]["blocks"], layer - first_mixture) if is_mixture else (None, layer)
        stack = p["blocks"] if stack is None else stack
        b = jax.tree.map(lambda leaf, at=at: leaf[at], stack)
        branches = (
            (1, lambda y, b=b: attention(y, b["attention"], seen_NxN, options, rotation)),
            (2, lambda y, b=b, f=mixture if is_mixture else block_mlp: f(y, b["mlp"], options)),
        )
        for i, branch in branches:
            norm = lambda y, b=b, i=i: layer_norm(y, b[f"norm_{i}"], options.eps)  # noqa: E731
            y = branch(norm(x_NxW)) if options.norm_order == "pre" else norm(branch(x_NxW))
            x_NxW = x_NxW + y * (b[f"scale_{i}"]["gamma"] if options.layer_scale else 1.0)
    return x_NxW


def map_pool(x_NxW, p, module, seen_N=None, heads=None):
    seen_N = np.ones(len(x_NxW), bool) if seen_N is None else seen_N
    query = dense(p["probe"], p["query"])[0]
    keys, values = dense(x_NxW, p["key"]), dense(x_NxW, p["value"])
    y = dense(_heads(query, keys, values, seen_N, heads or module.heads), p["out"])
    return y + mlp(layer_norm(y, p["norm"], module.eps), p["mlp"], module.activation)


def attention_pool(x_NxW, p, heads, eps, seen_N=None):
    """[n, D]."""
    seen_N = np.ones(len(x_NxW), bool) if seen_N is None else seen_N
    x = layer_norm(x_NxW, p["norm_key"], eps)
    queries = dense(layer_norm(p["query"], p["norm_query"], eps), p["to_query"])
    keys, values = dense(x, p["to_key"]), dense(x, p["to_value"])
    pooled = [_heads(query, keys, values, seen_N, heads) for query in queries]
    return dense(np.stack(pooled), p["out"])


def _heads(query_W, keys_NxW, values_NxW, seen_N, heads):
    size = len(query_W) // heads
    parts = [slice(h * size, (h + 1) * size) for h in range(heads)]
    return np.concatenate(
        [softmax_average(query_W[s], keys_NxW[:, s], values_NxW[:, s], seen_N) for s in parts]
    )


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


def resampled(line_G, length):
    """A line at another length: bilinear, antialiased, cut off at the ends, with the places of pixels' centres."""
    scale = len(line_G) / length
    reach = max(scale, 1.0)
    out = []
    for i in range(length):
        centre = (i + 0.5) * scale
        weights = [max(0.0, 1 - abs(j + 0.5 - centre) / reach) for j in range(len(line_G))]
        out.append(sum(w * v for w, v in zip(weights, line_G, strict=True)) / sum(weights))
    return np.stack(out)


def resampled_grid(table_GxGxW, rows, columns):
    """[rows * columns, W]."""
    tall = resampled(table_GxGxW, rows)
    wide = resampled(tall.swapaxes(0, 1), columns).swapaxes(0, 1)
    return wide.reshape(rows * columns, -1)


def rope_angles(module, p, has_class):
    """(angles [N, d/2] of all tokens, pairs), by the models' own definitions."""
    side, size = module.size // module.patch, module.width // module.heads
    rates = [10_000 ** (-i / (size // 4)) for i in range(size // 4)]
    begin = 1 if module.rope == "pe" and has_class else 0
    stretch = module.rope_grid / side if module.rope_grid else 1.0
    angles = []
    for row in range(side):
        for column in range(side):
            places = (column, row) if module.rope == "pe" else (row, column)
            angles.append([(place + begin) * stretch * rate for place in places for rate in rates])
    still = [[0.0] * (size // 2)]
    first = [p["rope_class"][0]] if module.rope == "mlcd" and has_class else still * has_class
    pairs = "half" if module.rope == "mlcd" else "adjacent"
    return np.array([*first, *still * module.registers, *angles]), pairs


def vit(params, image_BxHxWx3, module):
    """(pooled [B, W], tokens [B, N, W])."""
    return _stack(_vit(params, image, module) for image in image_BxHxWx3)


def _vit(p, image, module):
    stem = conv_stem(image, p["stem"], module) if module.stem == "conv" else None
    x = patches(image, p["stem"], module.patch) if stem is None else stem
    has_class = module.pool == "class" if module.class_token is None else module.class_token
    row_for_class = has_class and module.class_position
    side = module.size // module.patch
    if module.positions == "learned":
        position = p["position_embedding"]
    elif module.positions == "sincos_2d":
        grid = [sincos(r, c, module.width) for r in range(side) for c in range(side)]
        position = np.array([[0.0] * module.width] * row_for_class + grid)
    elif module.positions == "naflex":
        rows, columns = (n // module.patch for n in image.shape[:2])
        position = resampled_grid(p["position_embedding"], rows, columns)
        row_for_class = False
    else:
        position = np.zeros((row_for_class + len(x), module.width))
    first = []
    if has_class:
        first += [p["class_token"] + (position[:1] if row_for_class else 0.0)]
    first += [p["register_tokens"]] if module.registers else []
    x = np.concatenate([*first, x + position[int(row_for_class) :]])
    if module.pre_norm:
        x = layer_norm(x, p["norm_pre"], module.eps)
    rotation = rope_angles(module, p, has_class) if module.rope else None
    x = transformer(x, p["transformer"], module, rotation=rotation)
    if module.final_norm == "tokens" and module.pool != "attention":
        x = layer_norm(x, p["norm_post"], module.eps)
    tokens = x[has_class + module.registers :]
    seen = np.concatenate([x[:1], tokens]) if has_class else tokens
    heads = module.pool_heads or module.heads
    if module.pool == "attention":
        queries = attention_pool(seen, p["pool"], heads, module.eps)
        if module.final_norm == "tokens":
            queries = layer_norm(queries, p["norm_post"], module.eps)
        pooled, tokens = queries[0], queries[1:]
    elif module.pool == "map":
        pooled = map_pool(seen, p["pool"], module, heads=heads)
    else:
        pooled = x[0] if module.pool == "class" else tokens.mean(0)
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
    if module.class_token:
        x = np.concatenate([x, p["class_token"] + p["position_embedding"][length]])
        real = ids != module.pad_id
        real = [True, *real] if module.class_mask == "shifted" else [*real, True]
        seen = np.append(seen, True) & real
    tokens = len(x)
    seen_NxN = np.tile(seen, (tokens, 1))
    if module.attention == "causal":
        seen_NxN = seen_NxN & (np.arange(tokens)[:, None] >= np.arange(tokens))
    x = transformer(x, p["transformer"], module, seen_NxN)
    normed = layer_norm(x, p["norm_post"], module.eps)
    x = normed if module.final_norm == "tokens" else x
    if module.pool == "map":
        pooled = map_pool(x, p["pool"], module, seen)
        late = module.final_norm == "pooled"
        return layer_norm(pooled, p["norm_post"], module.eps) if late else pooled, x[:length]
    places = {"first": 0, "last": length - 1, "class": length}
    if module.pool == "eot":
        places["eot"] = list(ids).index(module.end_token)
    return normed[places[module.pool]], x[:length]


def _stack(pairs):
    first, second = zip(*pairs, strict=True)
    return np.stack(first), np.stack(second)
