"""What a contrastive loss costs with gradients: memory, FLOPs, elements communicated, read from the compiled program.

    python tools/bench_loss.py [--loss=softmax|sigmoid|regions] [--devices=8] [--batches=32768] [--width=768]
        [--schemes=ring,gather,...]

Nothing is run: the loss and its gradients are compiled for simulated CPU devices, and one line a scheme is printed as
Markdown. `ring` and `gather` are clipjax's; `local` is what is called local loss with gathered gradients elsewhere,
`matrix` the plain formula under jit, its rows split by XLA. With `--loss=regions` the batch counts regions, four an
image, and texts alike are left out. The tables in docs/losses.md are this program's output.
"""

import argparse
import os

SCHEMES = ("ring", "gather", "local", "matrix")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--batches", default="32768", help="global batches, separated by commas")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--loss", choices=("softmax", "sigmoid", "regions"), default="softmax")
    return parser.parse_args()


def main() -> None:
    """Prints the table."""
    args = arguments()
    # Before JAX starts.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
    print(
        f"{args.loss}, {args.devices} devices, D = {args.width}. "
        "GB: arguments, results and temporaries of one device.\n"
    )
    print("| scheme | B | GB | FLOPs / bBD | elements communicated / BD |")
    print("|---|---|---|---|---|")
    for batch in map(int, args.batches.split(",")):
        for scheme in args.schemes.split(","):
            memory, flops, words = measure(args.loss, scheme, batch, args.width, args.devices)
            print(
                f"| {scheme} | {batch:,} | {memory / 1e9:.3f} | {flops:.2f} | {words:.2f} |",
                flush=True,
            )


def measure(
    loss: str, scheme: str, batch: int, width: int, devices: int
) -> tuple[int, float, float]:
    """(bytes, FLOPs in units of bBD, elements communicated in units of BD) of one device, for value and gradients."""
    import jax
    import jax.numpy as jnp

    from clipjax.cost import hlo
    from clipjax.mesh import batch_sharding, make_mesh

    mesh = make_mesh(devices=jax.devices()[:devices])
    rows = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=batch_sharding(mesh))
    number = jax.ShapeDtypeStruct((), jnp.float32)
    step = jax.jit(jax.value_and_grad(_losses(loss, scheme, mesh), argnums=(0, 1, 2, 3)))
    compiled = step.lower(rows, rows, number, number).compile()
    used, text = compiled.memory_analysis(), compiled.as_text()
    memory = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
    moved = sum(c.bytes * c.times for c in hlo.collectives(text)) / 4
    flops = hlo.matmul_flops(text)
    return memory, flops * devices / (batch**2 * width), moved / (batch * width)


def _losses(loss, scheme, mesh):
    """The function (image, text, scale, bias) -> scalar of a scheme."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from clipjax.losses import region_contrastive, sigmoid_contrastive, softmax_contrastive

    def four(x):
        return x.reshape(-1, 4, *x.shape[1:])

    def exists(i):
        return i[:, 0] < 2.0  # every row, but the compiler cannot know

    if scheme in ("ring", "gather"):
        settings = dict(mesh=mesh, layout=scheme)
        if loss == "regions":
            return lambda i, t, s, b: (
                region_contrastive(four(i), four(t), four(exists(i)), s, **settings)[0] + 0.0 * b
            )
        if loss == "sigmoid":
            return lambda i, t, s, b: sigmoid_contrastive(i, t, s, b, **settings)[0]
        return lambda i, t, s, b: softmax_contrastive(i, t, s, **settings)[0] + 0.0 * b

    def binary(logits, first):
        rows, columns = logits.shape
        own = jnp.arange(columns) == first + jnp.arange(rows)[:, None]
        return jnp.sum(jax.nn.softplus(jnp.where(own, -logits, logits)))

    def cross_entropy(logits, first):
        own = jnp.take_along_axis(logits, first + jnp.arange(len(logits))[:, None], axis=1)[:, 0]
        return jnp.sum(jax.nn.logsumexp(logits, axis=1) - own) / 2

    def alike(t, texts, first):
        """What keeps other texts alike out of a sum, of logits; nothing but for regions."""
        if loss != "regions":
            return 0.0
        rows, columns = len(t), len(texts)
        own = jnp.arange(columns) == first + jnp.arange(rows)[:, None]
        return jnp.where(jax.lax.stop_gradient(t @ texts.T > 0.9) & ~own, -jnp.inf, 0.0)

    def matrix(i, t, s, b):
        logits = s * i @ t.T + b + alike(t, t, 0)
        if loss == "sigmoid":
            return binary(logits, 0) / len(i)
        return (cross_entropy(logits, 0) + cross_entropy(logits.T, 0)) / len(i)

    def local(i, t, s, b):
        first = jax.lax.axis_index("data") * len(i)
        images, texts = (jax.lax.all_gather(x, "data", tiled=True) for x in (i, t))
        if loss == "sigmoid":
            total = binary(s * i @ texts.T + b, first)
        else:
            out = alike(t, texts, first)
            total = cross_entropy(s * i @ texts.T + out, first)
            total += cross_entropy(s * t @ images.T + out, first) + 0.0 * b
        return jax.lax.psum(total, "data") / len(images)

    if scheme == "matrix":
        return matrix
    if scheme != "local":
        raise SystemExit(f"There is no scheme {scheme!r}; there are: {', '.join(SCHEMES)}.")
    split, everywhere = PartitionSpec("data"), PartitionSpec()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(split, split, everywhere, everywhere),
        out_specs=everywhere,
        check_vma=False,
    )


if __name__ == "__main__":
    main()
