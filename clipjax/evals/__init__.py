'''Evaluators: `run(params) -> metrics`, inside a run and from the command line alike.

An entry of a config's `evals` has a `kind` (a key of `KINDS` or an import path), the evaluator's settings, `every`, the
samples between two runs of it (None: at the end only), and a `source` like those of `data.sources`, its `filter`
included; or `sources`, several of them by name; or neither:

    config.evals.gap = {"kind": "experiments.mine.evals:Gap", "source": held_out(), "count": 500, "every": "10%"}

An evaluator is a class, made once at the start of a run:

    class Gap:
        """Distance between the mean image and the mean text embedding."""

        def __init__(self, name, encoder, source, *, count=1000):
            self.units = {"gap": ""}
            self._encoder, self._records = encoder, [source[i] for i in range(min(count, len(source)))]

        def run(self, params):
            image_NxD = self._encoder.images(params, [r["image"] for r in self._records])
            text_NxD = self._encoder.texts(params, [r["text"][0] for r in self._records])
            gap = np.linalg.norm(image_NxD.mean(0) - text_NxD.mean(0))
            self.protocol = {"records": len(self._records)}
            return {"gap": float(gap)}

- `__init__` is called with keywords: `name` (of the entry), `encoder` (`clipjax.encode.encoder.Encoder`: also its
  `module`, `tokenizer`, `config`, `outputs`, ...), `source` or `sources` if the entry has it, and the entry's settings,
  which are checked against the signature. What is wrong with the data should show here, not after the first interval.
- `run(params)` returns {metric: number}; the parameters are the averaged ones where a run keeps averages. In a job of
  several processes each runs it, and must get the same numbers.
- `protocol` (optional, a dict that JSON can hold, looked at after `run`): what the numbers depend on, such as counts
  and hashes, and `chance`: {metric: what a model without knowledge gets}.
- `units` (optional, {metric: unit}): of metrics that are not shares. Shares, in [0, 1], need none and are shown in per
  cent. "" shows a number without a unit.
- `galleries(params)` (optional): examples for the report, see `clipjax.log.pages`.
'''

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipjax import registry
from clipjax.data.bad import BadRecord
from clipjax.data.filters import make_filter
from clipjax.data.sources import make_source
from clipjax.errors import UserError, mistakes_in

KINDS = {
    "grounding": "clipjax.evals.regions.grounding:Grounding",
    "hard_negatives": "clipjax.evals.regions.hard_negatives:HardNegatives",
    "region_classification": "clipjax.evals.regions.classification:RegionClassification",
    "region_retrieval": "clipjax.evals.regions.retrieval:RegionRetrieval",
    "retrieval": "clipjax.evals.retrieval:Retrieval",
    "zero_shot": "clipjax.evals.zero_shot:ZeroShot",
}

# Fields of an entry that are not settings of the evaluator.
_SOURCES = ("source", "sources")
_OWN = ("kind", "every", *_SOURCES)
_NO_RUN = "The evaluator {!r} has no method run(params) -> metrics; add it."


class Filtered(Sequence):
    """The records of a source that a filter lets pass; it looks at all of them once.

    A record that cannot be read stays, so that the evaluator says so.
    """

    def __init__(self, source: Any, wanted: Any):
        self._source = source
        self._places = [i for i in range(len(source)) if self._passes(i, wanted)]

    def _passes(self, place: int, wanted: Any) -> bool:
        try:
            return wanted(self._source[place])
        except BadRecord:
            return True

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> Any:
        return self._source[self._places[place]]


class Evaluator:
    """An evaluator of a config, whose results are checked.

    Attributes:
      name: of its entry.
    """

    def __init__(self, name: str, evaluator: Any):
        self.name, self._evaluator = name, evaluator
        self._path = f"{type(evaluator).__module__}:{type(evaluator).__qualname__}"

    def run(self, params: Any) -> dict[str, float]:
        """Metrics by name.

        Raises:
          UserError: the evaluator returns something else than numbers by name; it is named.
        """
        with mistakes_in(f"The evaluator {self.name!r} ({self._path})", self._evaluator):
            found = self._evaluator.run(params)
        what = f"run of the evaluator {self._path!r} must return numbers by name"
        if not isinstance(found, Mapping):
            raise UserError(f"{what}, such as {{'acc@1': 0.5}}, not a {type(found).__name__}.")
        if not all(isinstance(key, str) and key for key in found):
            raise UserError(f"{what}, but it has the names {list(found)}.")
        return {key: _number(value, f"{what}, but {key!r}") for key, value in found.items()}

    @property
    def protocol(self) -> dict[str, Any]:
        """What the numbers of the last run depend on, with `units` where the evaluator names any.

        Raises:
          UserError: JSON cannot hold it.
        """
        units = dict(getattr(self._evaluator, "units", {}))
        found = dict(getattr(self._evaluator, "protocol", {}))
        try:
            json.dumps(found)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"The protocol of the evaluator {self._path!r} must be a dict that JSON can hold: {error}."
            ) from error
        return found | ({"units": units} if units else {})

    def galleries(self, params: Any) -> list[Any]:
        """Examples for the report; none if the evaluator gives none."""
        found = getattr(self._evaluator, "galleries", None)
        return [] if found is None else list(found(params))


def make_evaluator(name: str, config: Mapping[str, Any], encoder: Any) -> Evaluator:
    """The evaluator of one entry of `evals`.

    Raises:
      UserError: an unknown kind, source or setting, or a class that is not an evaluator; it is named.
    """
    make, path, settings = _class(name, config)
    given = {"name": name, "encoder": encoder}
    given |= {field: _make(name, config[field], field) for field in _SOURCES if field in config}
    with mistakes_in(f"The evaluator {name!r} ({path})", make):
        evaluator = make(**given, **settings)
    if not callable(getattr(evaluator, "run", None)):
        raise UserError(_NO_RUN.format(path))
    units = getattr(evaluator, "units", {})
    if not isinstance(units, Mapping) or not all(isinstance(u, str) for u in units.values()):
        raise UserError(
            f"The units of the evaluator {path!r} must be {{metric: unit}}, not {units!r}."
        )
    return Evaluator(name, evaluator)


def check_evaluators(config: Mapping[str, Any]) -> None:
    """Checks the kinds and settings of a config's `evals`, and opens nothing.

    Raises:
      UserError: as `make_evaluator`, but for what only the data or the model can show.
    """
    for name, entry in config.items():
        make, path, _ = _class(name, entry)
        if isinstance(make, type) and not callable(getattr(make, "run", None)):
            raise UserError(_NO_RUN.format(path))


def make_evaluators(config: Mapping[str, Any], encoder: Any) -> dict[str, Evaluator]:
    """All evaluators of a config's `evals`, by name."""
    return {name: make_evaluator(name, entry, encoder) for name, entry in config.items()}


def unit(metric: str, value: float, units: Mapping[str, str]) -> str:
    """The unit of a metric: what the evaluator says, else "%" of a share, "" of what cannot be one.

    Args:
      metric: its name.
      value: of it; shares are in [0, 1].
      units: of the evaluator's protocol.
    """
    return units.get(metric, "%" if 0 <= value <= 1 or math.isnan(value) else "")


def shown(value: float, unit: str) -> str:
    """A metric, or its chance level, for the eye: two digits, times 100 if the unit is "%"; without the unit."""
    return f"{100 * value if unit == '%' else value:.2f}"


def _number(value: Any, what: str) -> float:
    array = np.asarray(value) if not isinstance(value, str | bytes) else np.empty(0)
    if array.shape != () or array.dtype.kind not in "iuf":
        raise UserError(f"{what} is {value!r:.60}.")
    return float(array)


def _class(name: str, config: Mapping[str, Any]) -> tuple[Any, str, dict[str, Any]]:
    """(class, its import path, settings) of an entry, checked against the class's signature."""
    config = dict(config)
    if "kind" not in config:
        raise UserError(f"The evaluator {name!r} needs a 'kind'.")
    settings = {k: v for k, v in config.items() if k not in _OWN}
    make = registry.lookup(config["kind"], KINDS, "evaluator")
    path = KINDS.get(config["kind"], config["kind"])
    _check_sources(name, config, make, path)
    given = {"name": name, "encoder": None} | {f: None for f in _SOURCES if f in config}
    registry.check(make, settings, f"Evaluator {name!r}", **given)
    return make, path, settings


def _check_sources(name: str, config: Mapping[str, Any], make: Any, path: str) -> None:
    """Refuses a class that takes no encoder, and an entry with sources that it does not take, or without one."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"The evaluator {path!r} is not a class; see clipjax.evals.") from error
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for needed in ("name", "encoder"):
        if needed not in parameters and not free:
            raise UserError(
                f"The evaluator {path!r} must take {needed!r}, as __init__(self, name, encoder, ...)."
            )
    for field in _SOURCES:
        taken = field in parameters or free
        if field in config and not taken:
            raise UserError(f"The evaluator {name!r} ({path}) takes no {field!r}; leave it out.")
        needed = field in parameters and parameters[field].default is inspect.Parameter.empty
        if needed and field not in config:
            raise UserError(f"The evaluator {name!r} needs {_A[field]}.")


_A = {"source": "a 'source'", "sources": "'sources', several of them by name"}


def _make(name: str, config: Any, field: str) -> Any:
    if not hasattr(config, "items"):
        raise UserError(
            f"The {field!r} of the evaluator {name!r} must be a section, not {config!r}."
        )
    if field == "source":
        return _source(config, name)
    return {key: _make(f"{name}.{key}", entry, "source") for key, entry in config.items()}


def _source(config: Mapping[str, Any], name: str) -> Any:
    """The source of an entry, as a filter lets it pass."""
    source = make_source(config, name)
    wanted = make_filter(config.get("filter"), name)
    if wanted is None:
        return source
    filtered = Filtered(source, wanted)
    if not len(filtered):
        raise UserError(
            f"The filter of source {name!r} turns down all of its {len(source):,} records."
        )
    return filtered
