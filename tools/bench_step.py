"""Time a train step of clipjax beside transformers' CLIPModel in torch: same architecture, same machine, interleaved.

    pip install torch==2.13.0 transformers==5.23.0        # in any environment, this one or another
    python tools/bench_step.py --torch-python=PATH/OF/THAT/python

Both sides train a CLIP of 4,771,201 parameters (ViT of width 192, 6 layers, 8 px patches of 64 px images; text of
width 192, 4 layers, 32 tokens of 1,000) on the same batch size in float32 with AdamW: forward, backward, update.
Each side is a process of its own, both with large pages (clipjax/job/huge_pages.py); they take turns, and the best of
all turns is reported, since other work on the machine can only make a turn slower. clipjax's side is the library's own
model, loss and step.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from clipjax.job import huge_pages

BATCH, WIDTH, HEADS, TOKENS, VOCABULARY = 64, 192, 3, 32, 1000
PARAMETERS = 4_771_201


def clipjax_step(scan: bool):
    """A function that runs one whole train step of clipjax and waits for it."""
    import jax
    import numpy as np
    from flax import linen as nn

    from clipjax import optim
    from clipjax.defaults import base_config
    from clipjax.mesh import make_mesh
    from clipjax.models import (
        boxed_params,
        example_batch,
        image_section,
        make_model,
        model_section,
        text_section,
    )
    from clipjax.objective import make_losses
    from clipjax.step import init_state, make_step

    config = base_config()
    tower = dict(width=WIDTH, heads=HEADS, activation="quick_gelu", unroll=1 if scan else 0)
    config.model = model_section(
        image_section(size=64, patch=8, depth=6, **tower),
        text_section(
            length=TOKENS, vocab_size=VOCABULARY, depth=4, end_token=VOCABULARY - 1, **tower
        ),
        embed_dim=WIDTH,
        dtype="float32",
    )
    config.batch_size = BATCH
    mesh, model = make_mesh(), make_model(config.model)
    example = example_batch(config.model, BATCH)
    shapes = nn.unbox(boxed_params(model, example))
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count == PARAMETERS, count
    rate = optim.schedule("constant", peak=1e-4, total=10**9, warmup=0, batch_size=BATCH)
    optimizer = optim.make_optimizer(config.optim, shapes, rate)
    step = make_step(model, make_losses(config.losses, mesh), optimizer, config, rate)
    step = jax.jit(step, donate_argnums=0)
    rng = np.random.default_rng(0)
    ids = rng.integers(1, VOCABULARY - 2, (BATCH, TOKENS), np.int32)
    ids[:, -1] = VOCABULARY - 1
    batch = {
        "image": jax.numpy.asarray(rng.integers(0, 256, (BATCH, 64, 64, 3), np.uint8)),
        "text": jax.numpy.asarray(ids),
        "sample_seed": jax.numpy.arange(BATCH, dtype=jax.numpy.uint32),
    }
    state = init_state(model, config, optimizer, mesh)

    def run() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    return run


def torch_step():
    """A function that runs one whole train step of transformers' CLIPModel."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    tower = dict(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_attention_heads=HEADS,
        projection_dim=WIDTH,
    )
    text = dict(
        vocab_size=VOCABULARY,
        num_hidden_layers=4,
        max_position_embeddings=TOKENS,
        eos_token_id=VOCABULARY - 1,
        bos_token_id=VOCABULARY - 2,
        pad_token_id=0,
    )
    vision = dict(num_hidden_layers=6, image_size=64, patch_size=8)
    config = CLIPConfig(
        text_config=tower | text, vision_config=tower | vision, projection_dim=WIDTH
    )
    torch.manual_seed(0)
    model = CLIPModel(config).train()
    count = sum(p.numel() for p in model.parameters())
    assert count == PARAMETERS, count
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.2)
    pixels = torch.randn(BATCH, 3, 64, 64)
    ids = torch.randint(1, VOCABULARY - 2, (BATCH, TOKENS))
    ids[:, -1] = VOCABULARY - 1

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, pixel_values=pixels, return_loss=True).loss.backward()
        optimizer.step()

    return run


SIDES = {
    "clipjax": lambda: clipjax_step(scan=False),
    "clipjax, layers scanned": lambda: clipjax_step(scan=True),
    "torch, transformers CLIPModel": torch_step,
}


def worker(side: str) -> None:
    """Answers each line on standard input with the seconds of one step."""
    run = SIDES[side]()
    for _ in range(3):
        run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)


def main() -> None:
    """Starts a process a side, lets them take turns, prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--turns", type=int, default=15, help="turns of each side, 2 steps a turn")
    parser.add_argument(
        "--small-pages", action="store_true", help="leave the memory's page size alone"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        worker(args.side)
        return
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    if not args.small_pages:  # as the command line of clipjax sets it, here for both sides
        environment[huge_pages.TUNABLES] = huge_pages.SETTING
    workers = {}
    for side in SIDES:
        python = args.torch_python if side.startswith("torch") else sys.executable
        workers[side] = subprocess.Popen(
            [python, __file__, f"--side={side}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment,
        )
        if workers[side].stdout.readline().strip() != "ready":
            sys.exit(f"{side} did not start; its error stands above.")
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(args.turns):
        for side, process in workers.items():
            for _ in range(2):
                process.stdin.write("step\n")
                times[side].append(float(process.stdout.readline()))
    for process in workers.values():
        process.stdin.close()
        process.wait()
    reference = min(times["torch, transformers CLIPModel"])
    print(
        "| | best step | median step | samples/s (best) | ratio to torch (best) |\n|---|---|---|---|---|"
    )
    for side, seconds in times.items():
        best, middle = min(seconds), sorted(seconds)[len(seconds) // 2]
        print(
            f"| {side} | {best * 1e3:.0f} ms | {middle * 1e3:.0f} ms | {BATCH / best:.0f} | {reference / best:.2f} |"
        )


if __name__ == "__main__":
    main()
