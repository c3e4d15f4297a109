"""What a program multiplies: of the traced one, and of the one compiled for TPUs that are not there."""

import collections
import re
import warnings

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.extend import core
from jax.sharding import NamedSharding, PartitionSpec

from clipjax.mesh import make_mesh
from clipjax.platform import compiling_for


def _equations(program):
    for equation in program.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from _equations(getattr(value, "jaxpr", value))


def _is_program(value):
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)


def product_dtypes(function, *args):
    """How often (left, right, result) dtypes are multiplied in the text of a function's program."""
    found = collections.Counter()
    for equation in _equations(jax.make_jaxpr(function)(*args).jaxpr):
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            arrays = (*equation.invars, *equation.outvars)
            found[tuple(str(x.aval.dtype) for x in arrays)] += 1
    return found


def shard_shapes(function, *args):
    """Shapes of what goes into a program's one `shard_map`, constants first, as a device sees them."""
    equations = _equations(jax.make_jaxpr(function)(*args).jaxpr)
    (mapped,) = (e for e in equations if e.primitive.name == "shard_map")
    return [x.aval.shape for x in mapped.params["jaxpr"].invars]


def tpu_text(function, args, mesh):
    """The program that the TPU compiler makes of `function(args)` for 4 chips; the batch comes split over `data`."""
    pytest.importorskip("libtpu")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    mesh = make_mesh(mesh, np.array(topology.devices).tolist())
    where = NamedSharding(mesh, PartitionSpec("data"))
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), args)
    with compiling_for("tpu"), jax.set_mesh(mesh), warnings.catch_warnings():
        # The tests' compile cache takes programs for TPUs, but cannot give them back where there is none.
        warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
        return jax.jit(function).lower(args).compile().as_text()


def compiled_dtypes(text):
    """How often (left, right, result) dtypes are multiplied in the text of a compiled program."""
    found = collections.Counter()
    product = r"= (\w+)\[\S* (?:convolution|dot)\(%([\w.-]+), %([\w.-]+)\)"
    for computation in re.split(r"\n(?=\S)", text):
        dtypes = dict(re.findall(r"%([\w.-]+) = (\w+)\[", computation))
        for result, left, right in re.findall(product, computation):
            found[dtypes[left], dtypes[right], result] += 1
    return found
