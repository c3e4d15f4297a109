"""How far the library's numbers are from exact ones: attention, 8-bit products, towers, sums over devices.

    python tools/bench_precision.py [attention] [memory] [products] [tower] [sums] [collectives]    # default: all

Everything runs on a CPU; nothing is timed. `attention` runs TPUs' Splash kernel in Pallas' interpreter. `memory` and
`collectives` compile for devices that need not be there (pip install 'clipjax[plan]') and take minutes. An error is the
Euclidean norm of the difference over that of the exact array. docs/precision.md shows the output.
"""

import argparse
import dataclasses
import functools
import os
import re

import numpy as np

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state  # each part begins there, whichever ran before


def apart(found, exact) -> float:
    """Relative distance of two arrays, or of two lists of arrays taken as one vector, in float64."""
    flat = [
        np.concatenate([np.asarray(x, np.float64).ravel() for x in xs]) for xs in (found, exact)
    ]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def draw(*shape):
    """Normal numbers that bfloat16 holds exactly, so that inputs have no error in any dtype."""
    import ml_dtypes

    return RNG.normal(size=shape).astype(ml_dtypes.bfloat16).astype(np.float32)


def exact_attention(query, key, value, weight, causal):
    """softmax(q kT / sqrt(d)) v and the derivatives of sum(weight * y), [B, N, H, d], all in float64."""
    query, key, value, weight = (x.astype(np.float64) for x in (query, key, value, weight))
    scale = query.shape[-1] ** -0.5
    logits = np.einsum("bnhd,bmhd->bhnm", query, key) * scale
    if causal:
        logits = np.where(np.tri(logits.shape[-1], dtype=bool), logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = np.einsum("bnhd,bmhd->bhnm", weight, value)
    dlogits = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
    return (
        np.einsum("bhnm,bmhd->bnhd", p, value),
        np.einsum("bhnm,bmhd->bnhd", dlogits, key),
        np.einsum("bhnm,bnhd->bmhd", dlogits, query),
        np.einsum("bhnm,bnhd->bmhd", p, weight),
    )


def attention() -> None:
    """Errors of every implementation that a CPU can run, and how far they are from einsum."""
    import jax
    import jax.numpy as jnp

    from clipjax.models import splash
    from clipjax.models.attention import dot_product_attention
    from clipjax.platform import compiling_for

    splash.kernels.make_splash_mha = functools.partial(
        splash.kernels.make_splash_mha, interpret=True
    )

    def run(implementation, arrays, weight, causal):
        def loss(arrays):
            y = dot_product_attention(*arrays, causal=causal, implementation=implementation)
            return jnp.sum(y.astype(jnp.float32) * weight), y

        platform = "tpu" if implementation == "splash" else "cpu"
        with compiling_for(platform):
            (_, y), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
        return [np.asarray(x, np.float64) for x in (y, *gradients)]

    print("| tokens, head | dtype | implementation | output | dq | dk | dv | from einsum |")
    print("|---|---|---|---|---|---|---|---|")
    cases = ((197, 64, False), (77, 64, True), (729, 72, False), (1024, 64, False))
    for tokens, size, causal in cases:
        *arrays, weight = (draw(2, tokens, 2, size) for _ in range(4))
        exact = exact_attention(*arrays, weight, causal)
        for dtype in ("float32", "bfloat16"):
            cast = tuple(jnp.asarray(x, dtype) for x in arrays)
            einsum = run("einsum", cast, weight, causal)
            for name in ("einsum", "xla", "splash"):
                found = einsum if name == "einsum" else run(name, cast, weight, causal)
                errors = [apart([a], [b]) for a, b in zip(found, exact, strict=True)]
                cells = [f"{e:.1e}" for e in (*errors, apart(found, einsum))]
                kind = f"{tokens}, {size}{', causal' if causal else ''}"
                print(f"| {kind} | {dtype} | {name} | " + " | ".join(cells) + " |", flush=True)


def products() -> None:
    """Errors of one layer's three products, in bfloat16 and in 8 bits."""
    import jax
    import jax.numpy as jnp

    from clipjax.models.layers import matmul

    rows, width, features = 1024, 256, 512
    kernel, dy = draw(width, features) * width**-0.5, draw(rows, features)
    plain = draw(rows, width)
    columns = plain.copy()
    columns[:, :: width // 4] *= 32.0
    print("| x | products in | output | dx | dkernel |")
    print("|---|---|---|---|---|")
    for name, x in (("normal", plain), ("four columns 32 times as large", columns)):
        x64, kernel64, dy64 = (m.astype(np.float64) for m in (x, kernel, dy))
        exact = [x64 @ kernel64, dy64 @ kernel64.T, x64.T @ dy64]
        for kind in (None, "int8", "fp8"):

            def loss(x, kernel, dy, kind=kind):
                y = matmul(x, kernel, kind)
                return jnp.sum(y.astype(jnp.float32) * dy), y

            step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
            half = (jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16))
            (_, y), gradients = step(*half, dy)
            cells = [f"{apart([a], [b]):.2%}" for a, b in zip((y, *gradients), exact, strict=True)]
            print(f"| {name} | {kind or 'bfloat16'} | " + " | ".join(cells) + " |", flush=True)


def tower() -> None:
    """Errors of a transformer's output and gradients against the same one in float32."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    from clipjax.models.options import BlockOptions
    from clipjax.models.transformer import Transformer

    x, weight = draw(8, 50, 256), draw(8, 50, 256)
    options = BlockOptions(heads=4, mlp_dim=1024)
    exact = Transformer(6, options)
    params = nn.unbox(jax.jit(exact.init)(jax.random.key(0), x)["params"])

    def run(module):
        def loss(params):
            y = module.apply({"params": params}, x)
            return jnp.sum(y.astype(jnp.float32) * weight), y

        (_, y), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return np.asarray(y, np.float64), gradients

    y, gradients = run(exact)
    wanted = jax.tree.leaves(gradients)
    print("| dtype, quantize | output | all gradients | cosine of all gradients | lowest cosine |")
    print("|---|---|---|---|---|")
    for dtype, kind in (("bfloat16", None), ("bfloat16", "int8"), ("bfloat16", "fp8")):
        changed = dataclasses.replace(options, dtype=dtype, quantize=kind)
        found_y, found = run(exact.clone(options=changed))
        leaves = jax.tree.leaves(found)
        each = [cosine([a], [b]) for a, b in zip(leaves, wanted, strict=True)]
        cells = [f"{apart([found_y], [y]):.2%}", f"{apart(leaves, wanted):.2%}"]
        cells += [f"{cosine(leaves, wanted):.5f}", f"{min(each):.5f}"]
        print(f"| {dtype}, {kind} | " + " | ".join(cells) + " |", flush=True)


def cosine(found, exact) -> float:
    """Of two lists of arrays, each taken as one vector."""
    a, b = (
        np.concatenate([np.asarray(x, np.float64).ravel() for x in xs]) for xs in (found, exact)
    )
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def sums() -> None:
    """What it costs to sum a kernel's gradient over devices in bfloat16, one device after another."""
    import ml_dtypes

    width, features = 64, 64
    print("| devices | parts in bfloat16, sum in float32 | parts and sum in bfloat16 |")
    print("|---|---|---|")
    for devices in (1, 8, 64, 512):
        exact, wide, half = 0.0, np.float32(0), ml_dtypes.bfloat16(0)
        for _ in range(devices):
            part = draw(256, width).T @ draw(256, features)
            rounded = part.astype(ml_dtypes.bfloat16)
            exact, wide, half = exact + part.astype(np.float64), wide + rounded, half + rounded
        print(f"| {devices} | {apart([wide], [exact]):.2%} | {apart([half], [exact]):.2%} |")


def collectives(topology: str = "v5e:4") -> None:
    """In which dtype a train step in bfloat16, compiled for four devices, sums gradients over them."""
    from clipjax.defaults import base_config
    from clipjax.models.variants import model_config
    from clipjax.plan.compile import compile_step, make_job
    from clipjax.plan.topology import find

    config = base_config()
    config.model = model_config("ViT-B-16")
    for section in (config.model.image, config.model.text):
        section.update(width=256, depth=3, heads=4)
    config.model.image.size = 64
    config.model.text.update(vocab_size=1000, end_token=999)
    config.update(batch_size=256, total_samples=256_000)
    text = compile_step(make_job(config, find(topology))).text
    loops = set(re.findall(r"body=%([\w.\-]+)", text))
    print("| gradients summed over the devices | how often |\n|---|---|")
    computation = ""
    for line in text.splitlines():
        header = re.match(r"(?:ENTRY )?%([\w.\-]+) .*\{$", line)
        computation = header[1] if header else computation
        found = re.search(r"= (.*?) (?:all-reduce|reduce-scatter)(?:-start)?\(", line)
        name = (re.search(r'op_name="([^"]*)"', line) or ["", ""])[1]
        # Where XLA has joined several sums, their names may be lost; the losses sum in float32 only.
        if found and ("DualEncoder" in name or (not name and "bf16" in found[1])):
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", found[1])
            shapes = ", ".join(f"{dtype} [{shape}]" for dtype, shape in arrays)
            each = computation in loops or "/while/" in name
            print(f"| {shapes} | {'each layer' if each else 'once a step'} |")


def memory() -> None:
    """What one device needs for four layers and their gradients, by attention, compiled for TPU v5e."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn
    from jax.sharding import NamedSharding, PartitionSpec

    from clipjax.mesh import make_mesh
    from clipjax.models.options import BlockOptions
    from clipjax.models.splash import _blocks
    from clipjax.models.transformer import Transformer
    from clipjax.plan.topology import find
    from clipjax.platform import compiling_for

    topology, batch, width = find("v5e:4"), 8, 1024
    mesh = make_mesh({"data": 4}, topology.devices)

    def compiled(tokens: int, implementation: str) -> float:
        options = BlockOptions(heads=16, mlp_dim=4 * width, dtype="bfloat16")
        plain = Transformer(4, options)
        module = Transformer(4, dataclasses.replace(options, attention_impl=implementation))

        def loss(params, x):
            return jnp.sum(module.apply(params, x).astype(jnp.float32))

        x = jax.ShapeDtypeStruct((4 * batch, tokens, width), jnp.bfloat16)
        params = nn.unbox(jax.eval_shape(plain.init, jax.random.key(0), x))
        where = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
        x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[0])
        params = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=where[1]), params
        )
        with compiling_for("tpu"), jax.set_mesh(mesh):
            used = jax.jit(jax.grad(loss)).lower(params, x).compile().memory_analysis()
        return used.temp_size_in_bytes / 1e9

    print("| tokens | padded | products of scores | einsum, GB | splash, GB |")
    print("|---|---|---|---|---|")
    for tokens in (197, 257, 577, 729, 1024, 2304):
        _, padded = _blocks(tokens)
        cells = [str(tokens), str(padded), f"{(padded / tokens) ** 2:.2f}"]
        cells += [f"{compiled(tokens, name):.2f}" for name in ("einsum", "splash")]
        print("| " + " | ".join(cells) + " |", flush=True)


PARTS = {f.__name__: f for f in (attention, memory, products, tower, sums, collectives)}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--topology", default="v5e:4", help="of `collectives`: v5e:4, h100:4, ...")
    args = parser.parse_args()
    parts = args.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no part {unknown.pop()!r}; there are {', '.join(PARTS)}")
    os.environ["JAX_PLATFORMS"] = "cpu"
    if {"memory", "collectives"} & set(parts):
        from clipjax.plan.topology import prepare

        prepare(args.topology)
    for part in parts:
        RNG.bit_generator.state = START
        print(f"\n{part}: {PARTS[part].__doc__}\n", flush=True)
        PARTS[part](*[args.topology] * (part == "collectives"))


if __name__ == "__main__":
    main()
