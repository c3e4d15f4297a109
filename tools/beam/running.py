"""Runs a pipeline: here, or on whatever runner Beam's flags name."""

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.internal import cloudpickle
from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions

from clipjax.errors import UserError
from clipjax.registry import nearest

DIRECT = "DirectRunner"


def run(build: Callable[[Any], None], flags: Sequence[str]) -> Any:
    """Builds a pipeline and runs it to its end.

    Args:
      build: adds the job to a pipeline.
      flags: Beam's, `--runner` among them.

    Returns:
      Beam's result.

    Raises:
      UserError: unknown flags or runner, or what a worker has raised.
    """
    options, direct = _options(flags)
    runner = _local_runner(options) if direct else None
    try:
        pipeline = beam.Pipeline(runner=runner, options=options)
        build(pipeline)
        result = pipeline.run()
        state = result.wait_until_finish()
    except UserError as error:
        raise UserError(_plain(str(error))) from error
    except Exception as error:
        said = re.findall(r"clipjax\.errors\.(?:UserError|TryAgainError): (.+)", str(error))
        if not said:
            raise
        raise UserError(_plain(said[-1])) from error
    if state not in (None, "DONE"):
        raise UserError(f"The pipeline has ended as {state}; its runner's log says why.")
    return result


def _plain(said: str) -> str:
    """A worker's sentence without what Beam adds to it."""
    return re.sub(r" \[while running .*", "", said, flags=re.DOTALL).strip()


def _local_runner(options: PipelineOptions) -> Any:
    """What runs a pipeline here: DirectRunner itself would first look for a program to download, and run that."""
    # It logs what a worker raises, and then raises it.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.portability.portable_runner import JobServiceHandle

    debug = options.view_as(WorkerOptions)
    debug.default_sdk_harness_log_level = debug.default_sdk_harness_log_level or "CRITICAL"
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    info = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(info))


def check_flags(flags: Sequence[str]) -> None:
    """Refuses flags and runners that Beam does not know."""
    _options(flags)


def _options(flags: Sequence[str]) -> tuple[PipelineOptions, bool]:
    """Beam's options, and whether they run here."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    for kind in [PipelineOptions, *PipelineOptions.__subclasses__()]:
        kind._add_argparse_args(parser)
    try:
        known, unknown = parser.parse_known_args(list(flags))
    except (argparse.ArgumentError, SystemExit) as error:
        raise UserError(f"Beam does not take these flags: {error}.") from error
    direct = known.runner in (None, DIRECT, "direct")
    if unknown and direct:
        # Other runners know flags of their own.
        names = [s for action in parser._actions for s in action.option_strings]
        hint = nearest(unknown[0].partition("=")[0], names) if unknown[0].startswith("-") else ""
        hint = hint if hint.startswith(" (did") else ""
        raise UserError(f"There is no flag {unknown[0]!r}{hint}.")
    options = PipelineOptions(list(flags))
    try:
        if not direct:
            beam.runners.runner.create_runner(known.runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"The runner {known.runner!r} cannot be had: {error}") from error
    return options, direct


def travels(*modules: str) -> None:
    """Workers get the code of these modules with the pipeline: they have clipjax, but not this checkout."""
    for name in modules:
        cloudpickle.register_pickle_by_value(sys.modules[name])
