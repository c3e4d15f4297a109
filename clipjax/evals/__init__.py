"""Evaluators: `run(params) -> metrics`, inside a run and from the command line alike.

An entry of a config's `evals` has a `kind` (a key of `KINDS` or an import path), a `source` like those of
`data.sources`, the evaluator's settings, and `every`, the samples between two runs of it; None is at the end only.
"""

from collections.abc import Mapping
from typing import Any

from clipjax import registry
from clipjax.data.sources import make_source
from clipjax.errors import UserError

KINDS = {
    "grounding": "clipjax.evals.regions.grounding:Grounding",
    "hard_negatives": "clipjax.evals.regions.hard_negatives:HardNegatives",
    "region_classification": "clipjax.evals.regions.classification:RegionClassification",
    "region_retrieval": "clipjax.evals.regions.retrieval:RegionRetrieval",
    "retrieval": "clipjax.evals.retrieval:Retrieval",
    "zero_shot": "clipjax.evals.zero_shot:ZeroShot",
}


def make_evaluator(name: str, config: Mapping[str, Any], encoder: Any) -> Any:
    """The evaluator of one entry of `evals`.

    Raises:
      UserError: an unknown kind, source or setting.
    """
    settings = {k: v for k, v in dict(config).items() if k not in ("kind", "every", "source")}
    for field in ("kind", "source"):
        if field not in config:
            raise UserError(f"The evaluator {name!r} needs a {field!r}.")
    return registry.call(
        registry.lookup(config["kind"], KINDS, "evaluator"),
        settings,
        f"Evaluator {name!r}",
        name=name,
        source=make_source(config["source"], name),
        encoder=encoder,
    )


def make_evaluators(config: Mapping[str, Any], encoder: Any) -> dict[str, Any]:
    """All evaluators of a config's `evals`, by name."""
    return {name: make_evaluator(name, entry, encoder) for name, entry in config.items()}
