"""`clipjax convert`: a checkpoint of one format as one of another."""

import argparse
from collections.abc import Sequence


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument(
        "--source",
        required=True,
        metavar="PATH",
        help="a file, a directory, a workdir, hf-hub:NAME",
    )
    parser.add_argument("--target", required=True, metavar="DIR", help="where it goes; must be new")
    parser.add_argument(
        "--from", dest="form", metavar="FORMAT", help="default: recognised by its content"
    )
    parser.add_argument("--to", default="clipjax", metavar="FORMAT", help="default: clipjax")
    parser.add_argument(
        "--model", metavar="NAME", help="the architecture, for weights that do not say it"
    )
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="for checkpoints that come without a tokenizer"
    )
    parser.add_argument(
        "--without",
        default="",
        metavar="PART,...",
        help="leave out parts of the model: regions, image or text",
    )
    parser.add_argument("--dtype", metavar="DTYPE", help="of all parameters; default: as they are")
    parser.add_argument("--size", type=int, metavar="PX", help="of images; resamples positions")
    parser.add_argument("--length", type=int, metavar="N", help="of texts; resamples positions")
    parser.add_argument(
        "--mesh", metavar="AXIS=N,...", help="write in the pieces that such a mesh reads: fsdp=8"
    )
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", help="several files of at most this size, such as 5GB"
    )


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs the command."""
    del overrides
    from clipjax.convert.arguments import byte_count, mesh_sizes

    mesh = mesh_sizes(args.mesh)
    from clipjax.convert.command import convert
    from clipjax.convert.formats import Options
    from clipjax.convert.tokenizer_option import section

    return convert(
        args.source,
        args.target,
        form=args.form,
        to=args.to,
        options=Options(args.model, section(args.tokenizer)),
        left_out=[part.strip() for part in args.without.split(",") if part.strip()],
        dtype=args.dtype,
        size=args.size,
        length=args.length,
        mesh=mesh,
        max_shard_bytes=byte_count(args.max_shard_size),
    )
