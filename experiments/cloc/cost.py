"""What CLOC adds to CLIP's train step, in FLOPs: python -m experiments.cloc.cost experiments/cloc/configs/b16.py

Counted from traced programs (clipjax/cost/flops.py): the towers and the region head three times their forward pass, the
losses over the global batch with their gradients. Nothing is compiled, and nothing is repeated for memory's sake.
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp

from clipjax.batch import example_batch
from clipjax.config import load_config
from clipjax.cost.flops import count
from clipjax.defaults import base_config
from clipjax.errors import UserError
from clipjax.losses import grounding, region_contrastive, softmax_contrastive
from clipjax.models import boxed_params, make_model


def parts(config) -> dict[str, float]:
    """Name -> FLOPs of training on one sample."""
    module = make_model(config.model)
    one = example_batch(config, 1)
    params = nn.unbox(boxed_params(module, one))

    def forward(*fields: str) -> float:
        batch = {name: one[name] for name in fields}
        return 3.0 * count(lambda p, b: module.apply({"params": p}, b), params, batch)

    image, texts = forward("image"), forward("region_text")
    boxes = forward("image", "boxes") - image
    both = forward("image", "boxes", "region_text") - image - texts
    return {
        "image tower": image,
        "captions": forward("text"),
        "region texts": texts,
        "Prompter, boxes": boxes,
        "Prompter, texts, and the box head": both - boxes,
        **losses(config),
    }


def losses(config) -> dict[str, float]:
    """Name -> FLOPs of a loss over the global batch and its gradients, for one sample."""
    size, regions, width = (
        config.batch_size,
        config.data.features.regions.count,
        config.model.embed_dim,
    )
    threshold = config.losses.regions.conflict_threshold

    def array(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def of(loss, *inputs) -> float:
        return count(jax.value_and_grad(loss, argnums=(0, 1)), *inputs) / size

    rows, each = array(size, width), array(size, regions, width)
    mask = array(size, regions, dtype=jnp.bool_)
    corners = array(size, regions, 4)
    return {
        "image-text loss": of(lambda i, t: softmax_contrastive(i, t, 10.0)[0], rows, rows),
        "region-text loss": of(
            lambda z, t, m: region_contrastive(z, t, m, 10.0, conflict_threshold=threshold)[0],
            each,
            each,
            mask,
        ),
        "grounding loss": of(lambda p, b, m: grounding(p, b, m)[0], corners, corners, mask),
    }


def main(arguments: list[str] | None = None) -> None:
    """Prints a Markdown table; exits with status 2 on a user's mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="FILE[:arg]", help="of a run with regions")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="of the config")
    args = parser.parse_args(arguments)
    try:
        config = load_config(args.config, base_config(), args.overrides)
        if "regions" not in config.data.features:
            raise UserError(f"The config {args.config!r} has no feature `regions`.")
    except UserError as error:
        parser.exit(2, f"{error}\n")
    found = parts(config)
    total = sum(found.values())
    print("| part | GFLOPs a sample | of the step |\n|---|---|---|")
    for name, flops in found.items():
        print(f"| {name} | {flops / 1e9:.2f} | {flops / total:.1%} |")
    print(f"| step | {total / 1e9:.2f} | |")


if __name__ == "__main__":
    main()
