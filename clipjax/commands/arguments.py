"""Arguments that several commands share."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

OVERRIDES = "Any field can be overridden: --config.model.image.depth=6"


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--config=FILE[:arg]` with overrides of its fields."""
    parser.add_argument(
        "--config", required=True, metavar="FILE[:arg]", help="a Python file with get_config(arg)"
    )
    parser.epilog = OVERRIDES


def read_config(args: argparse.Namespace, overrides: Sequence[str]) -> ConfigDict:
    """The config that `--config` and the overrides mean."""
    from clipjax.config import load_config
    from clipjax.defaults import base_config

    return load_config(args.config, base_config(), overrides)


def add_job(parser: argparse.ArgumentParser) -> None:
    """How the processes of a job find each other."""
    job = parser.add_argument_group(
        "several processes",
        "SLURM, MPI and GKE's TPUs are recognised by themselves; see docs/launch.md.",
    )
    job.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="process 0, the same for all; 'auto' lets JAX find the cluster",
    )
    job.add_argument("--num-processes", type=int, metavar="N", help="processes of the job")
    job.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0")


def join(args: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Joins the job of several processes that this one may be part of; `settings` is the section `run`."""
    from clipjax.job import distributed

    distributed.start(
        args.coordinator,
        args.num_processes,
        args.process_id,
        start_timeout=settings["start_timeout"],
        heartbeat_timeout=settings["heartbeat_timeout"],
    )
