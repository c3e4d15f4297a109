"""A job of several processes: how they find each other, and how they wait for each other.

Every process runs the same program on the same global mesh. JAX's coordination service, which lives in process 0, lets
them meet and notices who is gone. In a process of its own all of this is idle.
"""

import collections
import contextlib
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Mapping
from typing import Any

import jax
from orbax.checkpoint import multihost

from clipjax.errors import TryAgainError, UserError

# Exit status "try again" (EX_TEMPFAIL): another process is gone, or nothing moved. The same command goes on.
TRY_AGAIN = 75


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    start_timeout: int = 300,
    heartbeat_timeout: int = 100,
) -> None:
    """Joins this process to its job; returns at once where it is alone. Call it before anything touches a device.

    Args:
      coordinator: HOST:PORT of process 0, the same for all; "auto": JAX finds the cluster; None: ask the environment.
      processes: how many there are.
      process: which of them this is, from 0.
      start_timeout: seconds within which all must have come.
      heartbeat_timeout: seconds without a sign of life after which a process counts as dead and the others end.

    Raises:
      UserError: half-given arguments, or a job that cannot start.
    """
    arguments = launch(os.environ, coordinator, processes, process)
    if arguments is None or jax.distributed.is_initialized():
        return
    # Its signal handler would compete with ours (signals.py), and agrees on steps that are not ours.
    jax.config.update("jax_enable_preemption_service", False)
    # Where JAX gives up by itself, it aborts and tells of a task that died.
    late = threading.Timer(start_timeout, _never_started, [arguments, start_timeout])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=start_timeout + 60,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=start_timeout,
        )
    except Exception as error:  # whatever a cluster's environment makes JAX stumble over
        raise TryAgainError(
            f"This process cannot join its job ({first_line(error)}); see docs/launch.md."
        ) from error
    finally:
        late.cancel()


def launch(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize` for this launch, None for a process of its own. Touches nothing.

    Raises:
      UserError: half-given arguments, or a launcher that JAX cannot follow.
    """
    flags = {"--coordinator": coordinator, "--num-processes": processes, "--process-id": process}
    given = [name for name, value in flags.items() if value is not None]
    if coordinator == "auto" and len(given) == 1:
        return {}
    if given:
        host, _, port = (coordinator or "").rpartition(":")
        if len(given) < 3 or not host or not port.isdigit():
            raise UserError(
                "A job started by flags needs --coordinator=HOST:PORT, --num-processes=N and --process-id=I in every "
                f"process, but here is only {', '.join(f'{n}={flags[n]}' for n in given)}."
            )
        if not 0 <= process < processes:
            raise UserError(
                f"--process-id={process} must be from 0 to --num-processes={processes} less one."
            )
        return {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
            "cluster_detection_method": "deactivate",
        }
    found = _launcher(environment)
    if found is None and "JAX_COORDINATOR_ADDRESS" in environment:
        raise UserError(
            "JAX_COORDINATOR_ADDRESS is set, but no launcher of several processes is recognised; give "
            "--coordinator, --num-processes and --process-id, or unset it."
        )
    return found


def _launcher(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Recognises MPI, SLURM and Cloud TPU by the variables that they document; docs/launch.md lists them."""

    def count(name: str) -> int:
        value = environment.get(name, "1")
        return int(value) if value.isdigit() else 1

    # Before SLURM, whose variables reach the processes of an mpirun inside an allocation.
    if count("OMPI_COMM_WORLD_SIZE") > 1 and "OMPI_MCA_orte_hnp_uri" in environment:
        return {"cluster_detection_method": "ompi"}
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    mpi = max(count("OMPI_COMM_WORLD_SIZE"), 1)
    # An interactive shell of a larger allocation is a step of one task. srun may set PMI_SIZE too, to its tasks; an
    # mpiexec inside the allocation sets it to more.
    tasks = min(count("SLURM_NTASKS"), count("SLURM_STEP_NUM_TASKS"))
    if mpi == 1 and count("PMI_SIZE") <= tasks and all(name in environment for name in slurm):
        _check_gpus(environment)
        return {"cluster_detection_method": "slurm"} if tasks > 1 else None
    if mpi > 1 or count("PMI_SIZE") > 1:
        if importlib.util.find_spec("mpi4py") is None:
            raise UserError(
                "This process was started by MPI, for which JAX needs mpi4py: pip install mpi4py."
            )
        return {"cluster_detection_method": "mpi4py"}
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts or count("MEGASCALE_NUM_SLICES") > 1:
        return {}
    return None


def _check_gpus(environment: Mapping[str, str]) -> None:
    """Refuses a SLURM step that would leave GPUs idle: JAX gives each task one of them."""
    gpus = re.match(r"\d+", environment.get("SLURM_GPUS_ON_NODE", ""))
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if (
        gpus
        and tasks
        and int(gpus[0]) > int(tasks[0])
        and "JAX_LOCAL_DEVICE_IDS" not in environment
    ):
        raise UserError(
            f"This node has {gpus[0]} GPUs and {tasks[0]} task(s) of this step, and JAX gives each task one GPU; start "
            "a task for each GPU, or set JAX_LOCAL_DEVICE_IDS to those that a task shall use."
        )


def is_primary() -> bool:
    """Whether this is the process that writes and speaks for all: process 0, or the only one."""
    return jax.process_index() == 0


_waits: collections.Counter[str] = collections.Counter()


def barrier(name: str, seconds: float) -> None:
    """Returns when all processes have come here; does nothing for one process. Call it in the same order everywhere.

    Raises:
      UserError: some have not come in time; they are named.
    """
    if jax.process_count() == 1:
        return
    if not jax.distributed.is_initialized():
        raise UserError(
            f"This is one of {jax.process_count()} processes, but they were not joined; add --coordinator=auto."
        )
    _waits[name] += 1
    try:
        multihost.get_barrier_sync_fn()(
            key=f"clipjax {name} {_waits[name]}", timeout_ms=round(seconds * 1000)
        )
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        missing = str(error).partition("timed out task names:")[2].partition("RPC:")[0].split()
        who = f"process {', '.join(missing)}" if missing else "another process"
        raise TryAgainError(
            f"Waited {seconds:g} s at {name!r} for {who}; look at what is printed there, and whether it runs."
        ) from error


def notify(text: str) -> None:
    """Prints one line on standard error that says which process speaks."""
    sys.stdout.flush()
    who = ""
    with contextlib.suppress(RuntimeError):  # no devices, and that may be what is to be told
        if jax.process_count() > 1:
            who = f"process {jax.process_index()} of {jax.process_count()}: "
    print(f"clipjax: {who}{text}", file=sys.stderr, flush=True)


def first_line(error: BaseException) -> str:
    """The beginning of what an error says, as part of a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".")


def _never_started(arguments: Mapping[str, Any], seconds: float) -> None:
    where = arguments.get("coordinator_address", "the cluster's own coordinator")
    print(
        f"clipjax: The job has not started within {seconds:g} s: not all its processes have reached {where}. Look "
        "whether all were started, with the same coordinator, and whether they can reach it; config.run.start_timeout "
        "is how long they wait.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(TRY_AGAIN)
