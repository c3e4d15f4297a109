"""`clipjax embed`: embeddings of image files and lines of text, in one file."""

import argparse
import glob
import importlib.util
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from clipjax.encode.encoder import Encoder
from clipjax.encode.inference import load_with_encoder
from clipjax.errors import UserError
from clipjax.evals.records import chunks, embed_texts
from clipjax.log.outputs import check_writable

# Images or texts read at a time; only so many decoded images are in memory.
BLOCK = 1024


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="a workdir, or a checkpoint of any format",
    )
    parser.add_argument("--images", metavar="GLOB", help="image files, such as 'photos/**/*.jpg'")
    parser.add_argument("--texts", metavar="FILE", help="one text a line")
    parser.add_argument("--output", required=True, metavar="FILE.npz", help="where the arrays go")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out, and list, images that cannot be read"
    )


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs the command."""
    del overrides
    return embed(args.checkpoint, args.images, args.texts, args.output, skip_bad=args.skip_bad)


def embed(
    path: str,
    images: str | None,
    texts: str | None,
    output: str,
    *,
    skip_bad: bool = False,
) -> int:
    """Embeds image files and lines of text, and writes one file.

    A `.npz` has `image_embedding` float32 [n, D] and `image_path` [n], `text_embedding` [m, D] and `text` [m],
    and `logit_scale` and `logit_bias` where the model has them. numpy gives each string the room of the longest; where
    that matters write a `.parquet` (needs pyarrow): columns `kind` ("image" or "text"), `source` (path or text) and
    `embedding`; scale and bias are in its schema's metadata.

    Args:
      path: what `clipjax.load` takes.
      images: pattern of image files, `**` for folders of any depth; None: no images.
      texts: file with one text a line, UTF-8; None: no texts.
      output: file that does not exist yet.
      skip_bad: leave out images that cannot be read, and list them; without it the first one ends the command.

    Returns:
      0, when the file is there.

    Raises:
      UserError: nothing to embed, an input that cannot be used (it is named), or an output that exists or cannot be
        written.
    """
    target = Path(output)
    check_target(target)
    if images is None and texts is None:
        raise UserError("Nothing to embed; give --images=GLOB, --texts=FILE, or both.")
    paths = find_images(images) if images is not None else []
    lines = read_lines(texts) if texts is not None else []
    model, encoder = load_with_encoder(path)

    found: dict[str, Any] = {}
    if paths:
        used, found["image_embedding"] = _embed_images(encoder, model.params, paths, skip_bad)
        found["image_path"] = np.array(used)
    if lines:
        found["text_embedding"] = embed_texts(encoder, model.params, lines, BLOCK)
        found["text"] = np.array(lines)
    if "logit_scale" in model.params:
        found["logit_scale"] = np.float32(model.logit_scale)
    if "logit_bias" in model.params:
        found["logit_bias"] = np.float32(model.params["logit_bias"])
    _write(target, found)
    counts = f"{len(found.get('image_path', ()))} images and {len(lines)} texts"
    print(f"{output}: {counts}, {encoder.width} numbers each.")
    return 0


def check_target(target: Path) -> None:
    """Refuses an output that exists, is of an unknown kind, or cannot be written."""
    if target.suffix not in (".npz", ".parquet"):
        raise UserError(f"The output {str(target)!r} must end in .npz or .parquet.")
    if target.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            "Writing .parquet needs pyarrow (pip install pyarrow); or let the output end in .npz."
        )
    if target.exists():
        raise UserError(f"{str(target)!r} exists already; choose another --output, or remove it.")
    check_writable(target)


def find_images(pattern: str) -> list[str]:
    """The files that a pattern names, sorted; UserError if there are none."""
    names = glob.iglob(os.path.expanduser(pattern), recursive=True)
    paths = sorted(name for name in names if not os.path.isdir(name))
    if not paths:
        raise UserError(f"--images={pattern!r} matches no file.")
    return paths


def read_lines(file: str) -> list[str]:
    """The lines of a UTF-8 file; UserError names the first blank one, or why the file cannot be read."""
    try:
        with open(file, encoding="utf-8-sig") as lines:
            texts = [line.rstrip("\n") for line in lines]
    except OSError as error:
        raise UserError(f"--texts={file!r} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--texts={file!r} is not UTF-8: {error}.") from error
    if not texts:
        raise UserError(f"--texts={file!r} has no lines.")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise UserError(f"Line {number} of {file!r} is empty; there is nothing to embed.")
    return texts


def _embed_images(
    encoder: Encoder, params: Any, paths: Sequence[str], skip_bad: bool
) -> tuple[list[str], np.ndarray]:
    """(paths of the images that could be read, their embeddings)."""

    def read(path: str) -> np.ndarray | UserError:
        try:
            return encoder.pixels(path)
        except UserError as error:
            return error

    used, parts, bad = [], [], 0
    errors = Console(stderr=True)
    blocks = list(chunks(paths, BLOCK))
    with ThreadPoolExecutor() as pool:
        for block in track(blocks, "images", console=errors, disable=not errors.is_terminal):
            pixels = []
            for path, result in zip(block, pool.map(read, block), strict=True):
                if not isinstance(result, UserError):
                    used.append(path)
                    pixels.append(result)
                elif skip_bad:
                    bad += 1
                    print(f"left out: {result}", file=sys.stderr)
                else:
                    raise UserError(f"{str(result)[:-1]}; --skip-bad leaves such images out.")
            if pixels:
                parts.append(encoder.run("image", params, encoder.stack(pixels)))
    if bad:
        print(f"{bad} of {len(paths)} images could not be read.", file=sys.stderr)
    if not used:
        raise UserError(f"None of the {len(paths)} images could be read.")
    return used, np.concatenate(parts)


def _write(target: Path, found: dict[str, Any]) -> None:
    """Writes the file under another name and renames it, so that it is whole or not there."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            (np.savez if target.suffix == ".npz" else _write_parquet)(file, **found)
        os.replace(partial, target)
    except OSError as error:
        raise UserError(
            f"The output {str(target)!r} cannot be written: {error.strerror}."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _write_parquet(file: Any, **found: Any) -> None:
    """One row for each image, then one for each text."""
    import pyarrow
    import pyarrow.parquet

    kinds = {"image": "image_path", "text": "text"}
    here = [kind for kind in kinds if f"{kind}_embedding" in found]
    rows_NxD = np.concatenate([found[f"{kind}_embedding"] for kind in here])
    names = [kind for kind in here for _ in found[kinds[kind]]]
    sources = [str(source) for kind in here for source in found[kinds[kind]]]
    values = pyarrow.array(rows_NxD.reshape(-1))
    vectors = pyarrow.FixedSizeListArray.from_arrays(values, rows_NxD.shape[1])
    table = pyarrow.table({"kind": names, "source": sources, "embedding": vectors})
    scalars = {k: repr(float(found[k])) for k in ("logit_scale", "logit_bias") if k in found}
    pyarrow.parquet.write_table(table.replace_schema_metadata(scalars), file)
