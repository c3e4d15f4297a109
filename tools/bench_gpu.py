"""Time CLIP training on one NVIDIA GPU, beside transformers' CLIPModel in torch; find the largest batches that train.

    pip install -e '.[cuda]'
    pip install torch==2.13.0 transformers==5.23.0        # better in an environment of its own
    python tools/bench_gpu.py --torch-python=PATH/OF/THAT/python
    python tools/bench_gpu.py --rehearse                  # tiny towers in float32 on a CPU: does the program work?

clipjax's side is the library's own model, losses, AdamW and step. Torch's side is the same architecture (the numbers
of parameters must be equal) with SDPA attention, bfloat16 autocast, fused AdamW and torch.compile. Both get the same
uint8 images and token ids, which lie on the device; reading data is not timed.

Every measurement is a process of its own: what it held is gone when the next one starts, so each framework has the
whole card, and a try that runs out of memory leaves nothing behind. The frameworks take turns; the best turn of each
counts. A turn compiles (after the first one from a cache on disk), warms up, and times `--steps` steps together.

The batch, unless a --model names one, is 7/8 of the largest that trains with clipjax: at the very edge of the memory
allocators work harder, and XLA trades speed for memory. Where torch cannot train that batch, its own largest is found
the same way and both are timed there too. Then the largest batch with the gradient cache is looked for.
MFU counts the FLOPs that the algorithm needs (`clipjax.prepare`), for both frameworks alike.

So far it has only been rehearsed, on CPUs. On a GPU expect an hour or two; `--model=NAME:REMAT:BATCH` spares a search.
"""

import argparse
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GOALS = {"ViT-B-16": 0.40, "ViT-L-14": 0.50}  # MFU
TORCH = "torch, transformers CLIPModel"
NAMES = {"clipjax": "clipjax", "torch": TORCH}
HEAD = ("model", "framework", "batch", "samples/s", "MFU", "peak memory, GB")
# How the frameworks, and the libraries under them, say that memory is short.
SHORT = ("RESOURCE_EXHAUSTED", "out of memory", "OUT_OF_MEMORY", "STATUS_ALLOC_FAILED")


class Entry(NamedTuple):
    """One model to measure: its name, what its backward pass recomputes, its batch (None: to be found)."""

    model: str
    remat: str = "dots"
    batch: int | None = None


class Scale(NamedTuple):
    """How much is tried: batches are multiples of `unit` up to `most`, with the gradient cache up to `cached_most`.

    `limit` is the rehearsal's artificial memory: (samples of a micro-batch, samples in all).
    """

    unit: int
    most: int
    cached_most: int
    turns: int
    warmup: int
    steps: int
    limit: tuple[int, int] | None = None


class FailedError(Exception):
    """A process ended in an error that is not a lack of memory."""


# Pure functions.


def read_entry(text: str) -> Entry:
    """NAME[:REMAT[:BATCH]] of the command line; ArgumentTypeError if it is something else."""
    parts = re.fullmatch(r"([^:]+)(?::(none|dots|full)(?::([1-9]\d*))?)?", text)
    if not parts:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME[:REMAT[:BATCH]] with REMAT none, dots or full"
        )
    name, remat, batch = parts.groups()
    return Entry(name, remat or "dots", int(batch) if batch else None)


def largest(fits: Callable[[int], bool], unit: int, most: int, finest: int = 8) -> int:
    """The largest multiple of `unit`, at most `most`, that `fits`: by doubling, then by bisection. 0: none does.

    It may be too small by one part in `finest`, or by `unit` if that is more.
    """
    most = most // unit * unit
    good, bad, size = 0, None, unit
    while good < most and bad is None:
        if fits(size):
            good, size = size, min(2 * size, most)
        else:
            bad = size
    while bad is not None and bad - good > max(unit, good // finest):
        middle = (good + bad) // 2 // unit * unit
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def comfortable(batch: int, unit: int) -> int:
    """7/8 of a batch, as a multiple of 64, or of `unit` where that is too coarse."""
    below = batch * 7 // 8
    grain = 64 if below >= 64 else unit
    return max(unit, below // grain * grain)


def is_short_of_memory(text: str) -> bool:
    """Whether an error's text says so."""
    return any(sign in text for sign in SHORT)


def mfu(row: Mapping[str, Any], peak: float | None) -> float | None:
    """The share of the card's peak that the needed FLOPs make up; None if either is unknown."""
    if not peak or not row.get("samples_per_second"):
        return None
    return row["samples_per_second"] * row["flops_per_sample"] / peak


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown. A row without a rate says why in its place."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for row in rows:
        rate, share, memory = (row.get(k) for k in ("samples_per_second", "mfu", "peak_bytes"))
        cells = [
            row["model"],
            row["framework"],
            f"{row['batch']:,}" + (" or more" if row.get("more") else ""),
            f"{rate:,.0f}" if rate else row.get("problem", "–"),
            "–" if share is None else f"{share:.1%}",
            f"{memory / 1e9:.1f}" if memory else "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts(rows: Iterable[Mapping[str, Any]], models: Iterable[str]) -> list[str]:
    """A line a model that has a goal: what clipjax reached of it."""
    lines = []
    rows = list(rows)
    for model in models:
        if model not in GOALS:
            continue
        timed_rows = (
            r for r in rows if r["model"] == model and r["side"] == "clipjax" and "turns" in r
        )
        shares = [r["mfu"] for r in timed_rows if r["mfu"] is not None]
        goal = f"{model}: the goal is {GOALS[model]:.0%} MFU; "
        if not shares:
            lines.append(goal + "not measured.")
        else:
            reached = "reached" if max(shares) >= GOALS[model] else "not reached"
            lines.append(goal + f"{max(shares):.1%} measured: {reached}.")
    return lines


# What a process of its own does. The parts for torch import nothing of clipjax.


def describe_clipjax() -> dict[str, Any]:
    """What JAX sees here."""
    import jax

    from clipjax.cost import hardware

    try:
        device = jax.devices()[0]
    except RuntimeError as error:
        return {"platform": f"none ({str(error).splitlines()[0]})"}
    versions = {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax")}
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "peak": hardware.peak(device.device_kind),
        "versions": versions,
    }


def describe_torch() -> dict[str, Any]:
    """What torch sees here."""
    try:
        import torch
        import transformers
    except ImportError as error:
        return {"missing": error.name}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    found = {"versions": versions, "platform": "cuda" if torch.cuda.is_available() else "cpu"}
    return found | ({"kind": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def train_clipjax(job: Mapping[str, Any]) -> dict[str, Any]:
    """Times clipjax's train step."""
    import jax
    import jax.numpy as jnp
    from ml_collections import ConfigDict

    from clipjax.defaults import base_config
    from clipjax.mesh import make_mesh
    from clipjax.prepare import prepare
    from clipjax.step import init_state

    batch_size = job["batch"]
    config = base_config()
    config.model = ConfigDict(job["model"], type_safe=False)
    config.update(batch_size=batch_size, grad_cache=job["chunks"], total_samples=10**12)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    prepared = prepare(config, mesh, epoch=10**12)
    step, work = prepared.step, prepared.flops_per_sample
    state = init_state(prepared.model, prepared.config, prepared.optimizer, mesh)
    count = sum(x.size for x in jax.tree.leaves(state.params))

    side, text = config.model.image.size, config.model.text

    @jax.jit
    def make_batch() -> dict[str, jax.Array]:
        # A few random samples, repeated, so that making a huge batch takes no more memory than it does.
        some, rows = min(batch_size, 64), jnp.arange(batch_size)
        pixels = jax.random.bits(jax.random.key(0), (some, side, side, 3), jnp.uint8)
        ids = jax.random.randint(jax.random.key(1), (some, text.length), 1, text.end_token - 1)
        ids = ids.at[:, -1].set(text.end_token)
        seeds = rows.astype(jnp.uint32)
        return {"image": pixels[rows % some], "text": ids[rows % some], "sample_seed": seeds}

    batch = make_batch()

    def run(steps: int) -> float:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    with jax.set_mesh(mesh):
        seconds = timed(run, job)
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "seconds": seconds,
        "parameters": count,
        "flops_per_sample": work,
        "peak_bytes": memory.get("peak_bytes_in_use"),
    }


def train_torch(job: Mapping[str, Any]) -> dict[str, Any]:
    """Times a train step of transformers' CLIPModel."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    model_section, batch_size = job["model"], job["batch"]
    image, text = model_section["image"], model_section["text"]
    activations = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}

    def tower(section: Mapping[str, Any]) -> dict[str, Any]:
        return dict(
            hidden_size=section["width"],
            intermediate_size=round(section["mlp_ratio"] * section["width"]),
            num_hidden_layers=section["depth"],
            num_attention_heads=section["heads"],
            hidden_act=activations[section["activation"]],
            layer_norm_eps=section["eps"],
            projection_dim=model_section["embed_dim"],
        )

    words = dict(
        vocab_size=text["vocab_size"],
        max_position_embeddings=text["length"],
        eos_token_id=text["end_token"],
        bos_token_id=text["end_token"] - 1,
        pad_token_id=0,
    )
    config = CLIPConfig(
        text_config=tower(text) | words,
        vision_config=tower(image) | dict(image_size=image["size"], patch_size=image["patch"]),
        projection_dim=model_section["embed_dim"],
        attn_implementation="sdpa",
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        model = CLIPModel(config).train()
    assert model.vision_model.config._attn_implementation == "sdpa"
    assert model.text_model.config._attn_implementation == "sdpa"
    count = sum(p.numel() for p in model.parameters())
    if image["remat"] == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=True
    )
    # Without a GPU, in the rehearsal, the same graph without code generation, which would take a minute.
    compiled = torch.compile(model, backend="inductor" if device == "cuda" else "aot_eager")
    mean, std = (
        torch.tensor(model_section[k], device=device).view(1, 3, 1, 1) for k in ("mean", "std")
    )
    some = min(batch_size, 64)
    rows = torch.arange(batch_size, device=device) % some
    shape = (some, 3, image["size"], image["size"])
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)[rows]
    ids = torch.randint(1, text["end_token"] - 1, (some, text["length"]), device=device)
    ids[:, -1] = text["end_token"]
    ids = ids[rows]

    def run(steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                normal = (pixels.float() / 255.0 - mean) / std
                loss = compiled(input_ids=ids, pixel_values=normal, return_loss=True).loss
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    seconds = timed(run, job)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"seconds": seconds, "parameters": count, "peak_bytes": peak}


def timed(run: Callable[[int], float], job: Mapping[str, Any]) -> float:
    """Seconds a step, after a warm-up; `run(steps)` waits for the device and returns the last loss."""
    run(job["warmup"])
    start = time.perf_counter()
    loss = run(job["steps"])
    seconds = (time.perf_counter() - start) / job["steps"]
    if not math.isfinite(loss):
        raise ValueError(f"The loss is {loss}.")
    return seconds


def child(job: Mapping[str, Any]) -> None:
    """Does a job and prints its result as the last line of standard output."""
    tasks = {
        ("clipjax", "describe"): lambda job: describe_clipjax(),
        ("torch", "describe"): lambda job: describe_torch(),
        ("clipjax", "train"): train_clipjax,
        ("torch", "train"): train_torch,
    }
    try:
        limit = job.get("limit")
        if limit and (job["batch"] // job["chunks"] > limit[0] or job["batch"] > limit[1]):
            raise MemoryError("RESOURCE_EXHAUSTED: the rehearsal's artificial limit")
        result = tasks[job["side"], job["task"]](job)
    except Exception as error:
        if not is_short_of_memory(f"{type(error).__name__}: {error}"):
            raise
        traceback.print_exc()
        result = {"out_of_memory": True}
    print(json.dumps(result), flush=True)


# The program that starts them.


class Bench:
    """Starts processes, keeps what they found, writes it to the JSON file after each row."""

    def __init__(self, args: argparse.Namespace, scale: Scale, environment: Mapping[str, str]):
        self.args, self.scale, self.environment = args, scale, environment
        self.found: dict[str, Any] = {"rehearsal": args.rehearse, "rows": [], "tries": []}
        self.remarks: list[str] = []
        self.has_torch = False

    def start(self, side: str, **job: Any) -> dict[str, Any]:
        """The result of a job in a process of its own.

        Raises:
          FailedError: with the last line of its standard error.
        """
        python = self.args.torch_python if side == "torch" else sys.executable
        job = json.dumps({"side": side, **job})
        command = [python, str(Path(__file__).resolve()), f"--child={job}"]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        lines = done.stdout.strip().splitlines()
        if done.returncode == 0 and lines:
            return json.loads(lines[-1])
        if is_short_of_memory(done.stderr):  # it was killed, or died where nothing can be caught
            return {"out_of_memory": True}
        errors = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise FailedError(errors[-1])

    def describe(self) -> None:
        """Finds the card and torch; ends the program where there is no card."""
        try:
            device = self.start("clipjax", task="describe")
        except FailedError as error:
            device = {"platform": f"none ({error})"}
        wanted = "cpu" if self.args.rehearse else "gpu"
        if device["platform"] != wanted:
            sys.exit(
                f"bench_gpu needs an NVIDIA GPU that JAX can use, and the platform here is {device['platform']}; "
                "--rehearse runs tiny models on a CPU instead."
            )
        try:
            torch = self.start("torch", task="describe")
        except (FailedError, OSError) as error:
            torch = {"missing": f"torch that works ({error})"}
        if "missing" in torch:
            self.remark(f"There is no {torch['missing']} here, so clipjax is measured alone.")
        elif not self.args.rehearse and torch.get("kind") != device["kind"]:
            self.remark(f"torch sees {torch.get('kind', 'no GPU')}, so clipjax is measured alone.")
        else:
            self.has_torch = True
        self.found |= {"device": device, "torch": torch, "peak": device["peak"]}

    def remark(self, text: str) -> None:
        """Says it now, and again below the table."""
        self.remarks.append(text)
        say(text)

    def train(self, side: str, entry: Entry, batch: int, chunks: int, steps: int, warmup: int):
        """The result of one process that trains, told and kept."""
        result = self.start(
            side,
            task="train",
            model=architecture(entry, self.args.attention, self.args.rehearse),
            batch=batch,
            chunks=chunks,
            steps=steps,
            warmup=warmup,
            limit=self.scale.limit,
        )
        rate = batch / result["seconds"] if "seconds" in result else None
        told = f"{rate:,.0f} samples/s" if rate else "out of memory"
        say(f"{entry.model}, {side}, batch {batch:,} in {chunks}: {told}")
        tried = {"model": entry.model, "side": side, "batch": batch, "chunks": chunks}
        self.found["tries"].append(tried | result)
        return result

    def row(self, side: str, entry: Entry, batch: int, result: Mapping[str, Any], **more: Any):
        """Adds a row to the table."""
        row = {"model": entry.model, "side": side, "framework": NAMES[side], "batch": batch}
        row |= {"remat": entry.remat, **result, **more}
        if "seconds" in result:
            row["samples_per_second"] = batch / result["seconds"]
            # Both frameworks are held against the FLOPs that clipjax counts.
            work = [t["flops_per_sample"] for t in self.found["tries"] if "flops_per_sample" in t]
            row.setdefault("flops_per_sample", work[-1])
        elif "out_of_memory" in result:
            row["problem"] = "out of memory"
        row["mfu"] = mfu(row, self.found["peak"])
        self.found["rows"].append(row)
        self.args.json.write_text(json.dumps(self.found, indent=2) + "\n")

    def search(self, side: str, entry: Entry, unit: int, most: int, micro: int | None):
        """The largest batch that trains, and its result; with the gradient cache if there is a micro-batch."""
        results = {0: {"out_of_memory": True}}

        def fits(batch: int) -> bool:
            chunks = batch // micro if micro else 1
            results[batch] = self.train(side, entry, batch, chunks, steps=1, warmup=1)
            return "seconds" in results[batch]

        best = largest(fits, unit, most)
        return best, results[best] | {"more": 0 < best == most // unit * unit}

    def measure(self, entry: Entry) -> None:
        """All rows of one model."""
        scale, batch = self.scale, entry.batch
        if batch is None:
            best, result = self.search("clipjax", entry, scale.unit, scale.most, None)
            self.row("clipjax", entry, best, result, framework="clipjax, largest batch")
            if not best:
                return
            batch = comfortable(best, scale.unit)
        own = batch
        if self.has_torch and "seconds" not in self.train("torch", entry, batch, 1, 1, 1):
            self.row("torch", entry, batch, {"out_of_memory": True})
            best, _ = self.search("torch", entry, scale.unit, batch, None)
            own = comfortable(best, scale.unit) if best else 0
        for size in sorted({batch, own} - {0}, reverse=True):
            self.compare(entry, size, ["clipjax"] + ["torch"] * (self.has_torch and size == own))
        micro = max(scale.unit, batch // 2 // scale.unit * scale.unit)
        best, result = self.search("clipjax", entry, 2 * micro, scale.cached_most, micro)
        name = f"clipjax, largest batch with the gradient cache (micro-batches of {micro:,})"
        self.row("clipjax", entry, best, result, framework=name, micro_batch=micro)

    def compare(self, entry: Entry, batch: int, sides: list[str]) -> None:
        """Turns of the frameworks at one batch, and their rows."""
        turns: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(self.scale.turns):
            for side in sides:
                scale = self.scale
                result = self.train(side, entry, batch, 1, scale.steps, scale.warmup)
                turns[side].append(result)
        counts = {r["parameters"] for results in turns.values() for r in results if "seconds" in r}
        if len(counts) > 1:
            raise FailedError(f"the frameworks' numbers of parameters differ: {counts}")
        for side, results in turns.items():
            best = min(results, key=lambda r: r.get("seconds", math.inf))
            self.row(side, entry, batch, best, turns=[r.get("seconds") for r in results])


def say(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def architecture(entry: Entry, attention: str, rehearse: bool) -> dict[str, Any]:
    """The `model` section of a config, for JSON."""
    from clipjax.errors import UserError
    from clipjax.models.variants import VARIANTS, model_config

    try:
        section = model_config(entry.model)
    except UserError as error:
        sys.exit(str(error))
    if VARIANTS[entry.model.removesuffix("-quickgelu")].family != "clip":
        sys.exit(f"{entry.model} is no CLIP, and torch's side is CLIPModel; choose one that is.")
    section.attention = attention
    for tower in (section.image, section.text):
        tower.remat = entry.remat
        if rehearse:
            tower.update(width=64, depth=1, heads=1)
    if rehearse:
        section.image.update(size=32, patch=16)
        section.text.update(length=8, vocab_size=64, end_token=63)
        section.embed_dim = 32
    return section.to_dict()


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--model", action="append", type=read_entry, metavar="NAME[:REMAT[:BATCH]]",
        help="a CLIP of clipjax/models/variants.py; may be given again\n(default: ViT-B-16:dots and ViT-L-14:dots)",
    )  # fmt: skip
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--turns", type=int, default=5, help="turns of each framework")
    parser.add_argument("--steps", type=int, default=20, help="steps timed together in a turn")
    parser.add_argument(
        "--cached-most", type=int, default=65_536, help="largest batch tried with the cache"
    )
    parser.add_argument("--attention", default="auto", help="model.attention of clipjax's side")
    parser.add_argument("--json", type=Path, default=Path("bench_gpu.json"), help="results")
    parser.add_argument("--rehearse", action="store_true", help="tiny models on a CPU")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    scale = Scale(16, 16_384, args.cached_most, args.turns, 3, args.steps)
    if args.rehearse:
        scale = Scale(4, 64, 64, turns=2, warmup=1, steps=2, limit=(9, 9))
    entries = args.model or [Entry("ViT-B-16"), Entry("ViT-L-14")]
    failed = False
    with tempfile.TemporaryDirectory() as cache:
        bench = Bench(args, scale, environment(cache, args.rehearse))
        os.environ["JAX_PLATFORMS"] = "cpu"  # this process never touches the card
        for entry in entries:
            architecture(entry, args.attention, args.rehearse)  # refuses a wrong name at once
        bench.describe()
        for entry in entries:
            try:
                bench.measure(entry)
            except FailedError as error:
                failed = True
                bench.remark(f"{entry.model} was not measured to the end: {error}")
    report(bench, entries)
    sys.exit(failed)


def environment(cache: str, rehearse: bool) -> dict[str, str]:
    """Of the processes: one card, most of its memory for JAX at once, programs kept on disk from turn to turn."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    chosen = dict(os.environ) | {"PYTHONPATH": path}
    chosen.setdefault("JAX_COMPILATION_CACHE_DIR", f"{cache}/jax")
    chosen.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    chosen.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{cache}/inductor")
    chosen.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in chosen:
        # JAX takes it at its start, as one piece; the rest is for the driver and the libraries.
        chosen.setdefault("XLA_CLIENT_MEM_FRACTION", "0.93")
    if rehearse:
        fast = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # to compile, not to run
        return chosen | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""} | fast
    first = chosen.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return chosen | {"CUDA_VISIBLE_DEVICES": first}


def report(bench: Bench, entries: list[Entry]) -> None:
    """Prints the table and what goes with it."""
    found = bench.found
    device, rows = found["device"], found["rows"]
    found["remarks"] = bench.remarks
    bench.args.json.write_text(json.dumps(found, indent=2) + "\n")
    versions = device["versions"] | found["torch"].get("versions", {})
    print(f"{device['kind']}; " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    if bench.args.rehearse:
        print("A rehearsal with tiny models: the numbers mean nothing.")
    print("\n" + table(rows) + "\n")
    if found["peak"] is None:
        print(f"clipjax/cost/hardware.py has no peak of {device['kind']!r}, so there is no MFU.")
    print("\n".join([*verdicts(rows, [e.model for e in entries]), *bench.remarks]))


if __name__ == "__main__":
    main()
