"""The real train step of a config, and its losses alone, compiled for devices that are not there."""

import contextlib
import dataclasses
import functools
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from clipjax.forward import final_outputs
from clipjax.mesh import batch_sharding, make_mesh, replicated
from clipjax.plan.topology import Topology
from clipjax.platform import compiling_for
from clipjax.prepare import Prepared, prepare


class Compiled(NamedTuple):
    """What the compiler made of a program.

    Attributes:
      text: the compiled program of one device; "" if it does not fit.
      arguments, outputs, temporaries, aliased: bytes of one device; aliased outputs lie where arguments lay.
      needed, allowed: bytes, where the compiler found the program too large (it then has no other figures).
      seconds: it took to compile.
    """

    text: str
    arguments: int = 0
    outputs: int = 0
    temporaries: int = 0
    aliased: int = 0
    needed: float = 0.0
    allowed: float = 0.0
    seconds: float = 0.0

    @property
    def total(self) -> float:
        """Bytes of one device."""
        return self.needed or self.arguments + self.outputs + self.temporaries - self.aliased


@dataclasses.dataclass(frozen=True)
class Job(Prepared):
    """A config on a topology, before anything is compiled: shapes, shardings and functions.

    Attributes (those of `Prepared`, and):
      topology: whose devices the mesh is made of.
    """

    topology: Topology


def make_job(config: ConfigDict, topology: Topology) -> Job:
    """Everything that `clipjax train` would set up, with nothing allocated.

    Raises:
      UserError: settings that cannot work, as `clipjax train` would say.
    """
    mesh = make_mesh(config.mesh, topology.devices)
    with compiling_for(topology.platform):
        prepared = prepare(config, mesh)
    fields = {f.name: getattr(prepared, f.name) for f in dataclasses.fields(prepared)}
    return Job(**fields, topology=topology)


def compile_step(job: Job) -> Compiled:
    """The train step, as `clipjax train` jits it."""
    return _compile(job, job.step, job.state, job.batch)


def compile_losses(job: Job) -> Compiled:
    """The losses alone, with the gradients of the outputs that they read."""
    with compiling_for(job.topology.platform), jax.set_mesh(job.mesh):
        outputs = jax.eval_shape(
            functools.partial(final_outputs, job.model), job.state.params, job.batch
        )

    def split(x: jax.ShapeDtypeStruct) -> NamedSharding:
        per_sample = x.ndim and len(x) == job.config.batch_size
        return batch_sharding(job.mesh) if per_sample else replicated(job.mesh)

    def total(outputs: Any, batch: Any) -> jax.Array:
        return job.losses(outputs, batch, jnp.float32(0.0))[0]

    names = sorted(outputs)
    traced = jax.make_jaxpr(lambda b, *xs: total(dict(zip(names, xs, strict=True)), b))(
        job.batch, *(outputs[n] for n in names)
    ).jaxpr
    read = {v for e in traced.eqns for v in e.invars if not isinstance(v, core.Literal)}
    used = {
        name: jax.ShapeDtypeStruct(
            outputs[name].shape, outputs[name].dtype, sharding=split(outputs[name])
        )
        for name, variable in zip(names, traced.invars[-len(names) :], strict=True)
        if variable in read
    }
    return _compile(job, jax.jit(jax.grad(total)), used, job.batch)


def _compile(job: Job, function: Any, *args: Any) -> Compiled:
    start = time.perf_counter()
    options = {}
    if job.topology.platform == "gpu":
        # Without a GPU there is nothing to tune Triton's tiles on, and the compiler gives up.
        options = {"xla_gpu_enable_triton_gemm": False}
    cached = contextlib.nullcontext() if job.topology.platform == "cpu" else _no_cache()
    with compiling_for(job.topology.platform), jax.set_mesh(job.mesh), cached:
        lowered = function.lower(*args)
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            needed, allowed = out_of_memory(str(error))
            if not needed:
                raise
            return Compiled("", needed=needed, allowed=allowed, seconds=time.perf_counter() - start)
    used = compiled.memory_analysis()
    return Compiled(
        compiled.as_text(),
        used.argument_size_in_bytes,
        used.output_size_in_bytes,
        used.temp_size_in_bytes,
        used.alias_size_in_bytes,
        seconds=time.perf_counter() - start,
    )


def out_of_memory(message: str) -> tuple[float, float]:
    """(bytes needed, bytes there) from what the TPU compiler says of a program that is too large; (0, 0) of others."""
    size = r"([\d.]+)([KMGT]?)"
    found = re.search(rf"Used {size} of {size} hbm", message) or re.search(
        rf"HLO temporaries \({size}\) exceeds available HBM \({size}\)", message
    )
    if "RESOURCE_EXHAUSTED" not in message or not found:
        return 0.0, 0.0
    power = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
    need, need_unit, there, there_unit = found.groups()
    return float(need) * 2.0 ** power[need_unit], float(there) * 2.0 ** power[there_unit]


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """The compile cache could write such programs, but not read them back."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
