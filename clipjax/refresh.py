"""Refreshes: parameters made anew now and then, at their own interval, from the model as it is.

Cluster prototypes, pseudo-labels, a copied teacher. An entry of `config.refreshes` has a `kind` (a key of `KINDS` or an
import path), `every` (a duration: after each batch that reaches a multiple of it), and the function's settings.
`at_start: True` lets it also run on the fresh parameters before the first step; without `every` it then runs only
there. With a `source`, an entry such as those of `data.sources`, the function is given that source, opened once.

A refresh is a function

    (params, encoder, samples, rng, *, [source,] **settings) -> {path: array}

  params     the tree of the model's parameters, jax.Arrays on the mesh; the trained ones, not their average
  encoder    the run's `clipjax.encode.encoder.Encoder`: images, texts and regions in, embeddings out
  samples    seen so far, an int; 0 at the start
  rng        a key of `jax.random`, from (config.seed, the entry's name, samples)
  returns    new values (NumPy or JAX) of frozen parameters, each with the shape and dtype that the parameter has

The loop's order at a sample count is fixed: metrics, refreshes in the order of their names, evaluators, checkpoint. A
refresh must depend on nothing but its arguments. Then a resumed run is the same bit for bit, and all processes of a
job, each of which calls it, get the same; what they got is compared.
"""

import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from clipjax import optim, registry, rules, updates
from clipjax.checkpoint import due
from clipjax.data.sources import make_source
from clipjax.errors import UserError, describe, mistakes_in, name_of
from clipjax.job.agreement import check_same
from clipjax.prepare import Prepared

KINDS = {"copy": "clipjax.refresh:copy"}
GIVEN = ("params", "encoder", "samples", "rng")


def copy(
    params: Mapping[str, Any],
    encoder: Any,
    samples: int,
    rng: jax.Array,
    *,
    source: str,
    target: str,
) -> dict[str, jax.Array]:
    """The parameters under `target` become those under `source` ("" is the whole model without the target)."""
    del encoder, samples, rng
    flat = rules.paths(params)
    under = lambda path, part: not part or path == part or path.startswith(f"{part}/")  # noqa: E731
    rest = {p: p.removeprefix(source).strip("/") for p in flat if under(p, source)}
    new = {
        "/".join(filter(None, (target, name))): flat[p]
        for p, name in rest.items()
        if not under(p, target)
    }
    if not new:
        raise UserError(f"The refresh 'copy' finds no parameter under its source {source!r}.")
    return new


class Refresh(NamedTuple):
    """One entry of `config.refreshes`, checked."""

    name: str
    function: Callable[..., Any]
    settings: dict[str, Any]
    given: dict[str, Any]  # the source, if there is one
    every: int | None
    at_start: bool
    what: str

    def is_due(self, samples: int, batch_size: int) -> bool:
        """Whether it runs after `samples`; at 0 before the first step."""
        return self.at_start if samples == 0 else due(samples, self.every, batch_size)


def make_refreshes(config: Mapping[str, Any]) -> list[Refresh]:
    """The entries of a resolved config's `refreshes`, in the order of their names.

    Raises:
      UserError: an entry without a kind or an interval, or a function or setting that does not fit.
    """
    return [_make(name, dict(entry)) for name, entry in sorted(config["refreshes"].items())]


def _make(name: str, entry: dict[str, Any]) -> Refresh:
    if "kind" not in entry:
        raise UserError(
            f"The refresh {name!r} needs a 'kind', one of {', '.join(KINDS)} or an import path."
        )
    function = registry.lookup(entry.pop("kind"), KINDS, "refresh")
    every, at_start = entry.pop("every", None), entry.pop("at_start", False)
    if not every and at_start is not True:
        raise UserError(f"The refresh {name!r} needs `every`, a duration, or at_start = True.")
    what = f"The refresh {name!r} ({name_of(function)})"
    takes = inspect.signature(function).parameters
    if not set(GIVEN) <= takes.keys():
        raise UserError(
            f"{what} must be a function of {', '.join(GIVEN)}, but takes ({', '.join(takes)}); "
            "these names are fixed."
        )
    given = {}
    if isinstance(entry.get("source"), Mapping | ConfigDict):
        given["source"] = make_source(entry.pop("source"), name)
    registry.check(function, entry, f"Refresh {name!r}", **dict.fromkeys(GIVEN), **given)
    return Refresh(name, function, entry, given, every, bool(at_start), what)


def refreshed(
    refresh: Refresh, params: Mapping[str, Any], encoder: Any, samples: int, prepared: Prepared
) -> dict[str, Any]:
    """The tree of parameters with the new values of one refresh, laid out over the mesh as before.

    Raises:
      UserError: the function fails or returns something that does not fit.
      SharedError: processes of a job got different values.
    """
    rng = jax.random.key(prepared.config["seed"])
    for number in (zlib.crc32(refresh.name.encode()), samples >> 32, samples & 0xFFFFFFFF):
        rng = jax.random.fold_in(rng, np.uint32(number))
    with mistakes_in(refresh.what, refresh.function), jax.set_mesh(prepared.mesh):
        new = refresh.function(
            params=params,
            encoder=encoder,
            samples=samples,
            rng=rng,
            **refresh.given,
            **refresh.settings,
        )
    if not isinstance(new, Mapping):
        raise UserError(f"{refresh.what} must return a dict, path -> array, not {describe(new)}.")
    trained, frozen, _ = optim.split(prepared.state.params, prepared.config["optim"]["freeze"])
    updates.check(new, frozen, trained, refresh.what)
    if jax.process_count() > 1:
        check_same(
            f"result of the refresh {refresh.name!r}", {p: _digest(x) for p, x in new.items()}
        )
    flat = rules.paths(params)
    return rules.tree(flat | {path: _placed(x, flat[path].sharding) for path, x in new.items()})


def _placed(value: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array of its own: the step gives its arguments' memory away, so no two of them may share it."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return jax.jit(jnp.copy, out_shardings=sharding)(value)
    whole = np.asarray(value)
    return jnp.copy(jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__))


def _digest(value: Any) -> str:
    """Of what this process knows of a value; parts of an array over all processes are one value by construction."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return "global"
    return str(zlib.crc32(np.ascontiguousarray(value).tobytes()))
