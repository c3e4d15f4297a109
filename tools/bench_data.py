"""Samples a second from tars of JPEGs to batches, beside open_clip's webdataset pipeline and bare JPEG decoding.

    python tools/bench_data.py --peer-python=PYTHON [--workers=2] [--rounds=5] [--seconds=6]

All three read the same tars of images made for the purpose (crops of scikit-image's photographs, quality 90) with the
same number of processes, one after another in every round, and the best round of each counts:

  clipjax    Stream and `batches`: read, decode, random resized crop, bicubic to 224, tokenize, batch
  open_clip  `open_clip_train.data.get_wds_dataset` with its training transform and tokenizer, through its DataLoader
  limit      libjpeg-turbo decodes the whole images, from memory, and nothing else

PYTHON is an interpreter with open-clip-torch 3.3.0, webdataset 0.2.86 and pandas; without it there are two columns.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

SIZES = ((340, 256), (640, 480))
BATCH = 64


def make_tar(path, size, count):
    """A tar in img2dataset's layout, of random crops of photographs."""
    import numpy as np
    import skimage.data
    from PIL import Image

    rng = np.random.default_rng(size[0])
    names = ("astronaut", "coffee", "chelsea", "rocket")
    photos = [Image.fromarray(getattr(skimage.data, name)()) for name in names]
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            photo = photos[number % len(photos)]
            share, x, y = rng.uniform(0.5, 1), *rng.uniform(0, 1, 2)
            left, top = (1 - share) * x * photo.width, (1 - share) * y * photo.height
            box = (left, top, left + share * photo.width, top + share * photo.height)
            jpeg = io.BytesIO()
            photo.resize(size, Image.Resampling.BICUBIC, box=box).save(jpeg, "JPEG", quality=90)
            text = (
                f"photo {number}: {names[number % 4]}, seen from a distance of {share:.2f} metres"
            )
            for ending, data in (("jpg", jpeg.getvalue()), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{number:08d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def speed(batches, seconds):
    """Samples a second of an endless iterator of (a number of samples), after a second to fill its buffers."""
    next(batches)
    start = time.perf_counter()
    while time.perf_counter() - start < 1.0:
        next(batches)
    start, samples = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        samples += next(batches)
    return samples / (time.perf_counter() - start)


def ours(tars, workers, seconds):
    """From clipjax's Stream to its batches."""
    from clipjax.data.pipeline import batches
    from clipjax.data.stream import Stream
    from clipjax.defaults import base_config

    config = base_config()
    config.data.sources = {"tars": {"kind": "tars", "shards": tuple(tars)}}
    found = batches(Stream(config), BATCH, 0, 10**9, threads=1, workers=workers)
    return speed((len(batch["text"]) for batch in found), seconds)


def decode_forever(tars, counter):
    """Decodes images one after another and counts them."""
    import simplejpeg

    images = []
    for path in tars:
        with tarfile.open(path) as tar:
            images += [tar.extractfile(m).read() for m in tar if m.name.endswith("jpg")]
    while True:
        for image in images:
            simplejpeg.decode_jpeg(image, "RGB")
            counter.value += 1


def limit(tars, workers, seconds):
    """Bare libjpeg-turbo."""
    counters = [multiprocessing.Value("q", 0, lock=False) for _ in range(workers)]
    processes = [
        multiprocessing.Process(target=decode_forever, args=(tars, c), daemon=True)
        for c in counters
    ]
    for process in processes:
        process.start()
    time.sleep(1.5)
    before, start = sum(c.value for c in counters), time.perf_counter()
    time.sleep(seconds)
    rate = (sum(c.value for c in counters) - before) / (time.perf_counter() - start)
    for process in processes:
        process.kill()
        process.join()
    return rate


def peer(tars, workers, seconds):
    """open_clip 3.3.0, as its training program reads data."""
    import types

    import open_clip
    import torch
    from open_clip_train.data import get_wds_dataset

    transform = open_clip.image_transform(224, is_train=True)
    args = types.SimpleNamespace(
        **{"train_data": "::".join(map(str, tars)), "train_data_upsampling_factors": None},
        **{"val_data": None, "train_num_samples": 10**6, "dataset_resampled": True, "seed": 0},
        **{"batch_size": BATCH, "workers": workers, "world_size": 1, "rank": 0},
    )
    torch.set_num_threads(1)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    loader = get_wds_dataset(args, transform, True, tokenizer=tokenizer).dataloader
    return speed((len(batch[1]) for batch in iter(loader)), seconds)


RUNS = {"clipjax": ours, "open_clip": peer, "limit": limit}


def measure(name, python, tars, workers, seconds):
    """One figure, in a process of its own."""
    command = [
        python,
        __file__,
        "--only",
        name,
        "--workers",
        str(workers),
        "--seconds",
        str(seconds),
    ]
    found = subprocess.run([*command, *tars], capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"{name}: {found.stderr}")
    return json.loads(found.stdout.splitlines()[-1])


def main():
    """Prints a table, one row for each size of images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", metavar="PYTHON")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--images", type=int, default=1000, help="of each of two tars")
    parser.add_argument("--only", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("tars", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        rate = RUNS[args.only](args.tars, args.workers, args.seconds)
        print(json.dumps(rate), flush=True)
        return
    pythons = {"clipjax": sys.executable, "open_clip": args.peer_python, "limit": sys.executable}
    names = [name for name, python in pythons.items() if python]
    others = [name for name in names if name != "clipjax"]
    print("| " + " | ".join(["images", *names, *(f"clipjax / {n}" for n in others)]) + " |")
    print("|---|" + "---|" * (len(names) + len(others)))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for size in SIZES:
            tars = [str(folder / f"{size[0]}-{n}.tar") for n in range(2)]
            for tar in tars:
                make_tar(tar, size, args.images)
            subprocess.run(
                [sys.executable, "-m", "clipjax.cli", "data", "index", *tars],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            best = dict.fromkeys(names, 0.0)
            for _ in range(args.rounds):
                for name in names:
                    rate = measure(name, pythons[name], tars, args.workers, args.seconds)
                    best[name] = max(best[name], rate)
            cells = [f"{best[name]:,.0f}" for name in names]
            cells += [f"{best['clipjax'] / best[name]:.2f}" for name in others]
            print(f"| {size[0]} x {size[1]} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
