"""Native against inverted features: intra-modal retrieval, zero-shot classification, and the modality gap."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipjax import registry
from clipjax.errors import UserError
from clipjax.evals.classes import Classes, chance
from clipjax.evals.metrics import nearest_class_metrics
from clipjax.evals.records import embed_records, embed_texts, field_of, texts_of
from experiments.cross_the_gap.inversion import OTI, OVI, Inversion
from experiments.cross_the_gap.ranking import ranking_metrics

CHUNK = 1024  # images or texts given to the encoder at once
Metrics = dict[str, float]


class Entries(NamedTuple):
    """Features float32 [N, D] of a source's images or texts, the number of each one's record [N], and the records."""

    feature_NxD: np.ndarray
    record_N: np.ndarray
    records: list[dict[str, Any]]


class Retrieval:
    """Queries, native and inverted for each number of steps, ranked by cosine against a native gallery.

    Metrics are `native/mAP`, `oti_150/mAP` and so on, also `mAP@R`, `P@R`, `R@1` (`ranking_metrics`), `gap` (from the
    mean query to the gallery's mean), `gain` (mAP above native) and `cosine` (of a query and its target).

    Args:
      name, encoder: as for every evaluator.
      source: queries and gallery in one; a query is then left out of its own gallery.
      sources: or `queries` and `gallery` apart.
      label_field: entries with the query's label are relevant; None: those of its record.
      relevant, ignored: or fields of the query's record that list the records of the gallery which are relevant, and
        which do not count (ROxford's easy, hard and junk).
      count: of queries, evenly spaced; None: all.
      inversion: settings of `OTI` or `OVI`.
    """

    def __init__(
        self,
        name: str,
        encoder: Any,
        source: Any = None,
        sources: Mapping[str, Any] | None = None,
        *,
        label_field: str | None = "label",
        relevant: Sequence[str] = (),
        ignored: Sequence[str] = (),
        count: int | None = None,
        inversion: Mapping[str, Any] | None = None,
    ):
        both = sources or {"queries": source, "gallery": source}
        if set(both) != {"queries", "gallery"} or None in both.values():
            raise UserError(f"The evaluator {name!r} needs a source, or sources queries, gallery.")
        self.name, self._encoder, self._count, self._label = name, encoder, count, label_field
        self._queries, self._gallery, self._within = both["queries"], both["gallery"], not sources
        self._relevant, self._ignored = tuple(relevant), tuple(ignored)
        self._invert = make_inversion(self.kind, inversion, name, encoder)
        kinds = ["native", *steps_of(self._invert)]
        units = {"gain": "%", "gap": "", "cosine": ""}
        self.units = {f"{kind}/{name}": unit for kind in kinds for name, unit in units.items()}

    def run(self, params: Any) -> Metrics:
        """See the class."""
        gallery = self._entries(params, self._gallery, ())
        queries = self._entries(params, self._queries, self._relevant + self._ignored)
        chosen = spread(len(queries.feature_NxD), self._count)
        judged = {n: self._judged(queries, gallery, n) for n in chosen}
        asked = [n for n in chosen if judged[n][0].any()]
        if not asked:
            raise UserError(f"No query of evaluator {self.name!r} has a relevant entry.")
        target_NxD, gallery_MxD = queries.feature_NxD[asked], gallery.feature_NxD.astype(float)
        native = {"native": target_NxD}
        inverted = steps_of(self._invert, self._invert(params, target_NxD))

        def ranked(query_NxD: np.ndarray) -> Metrics:
            found: list[Metrics] = []
            for q_D, n in zip(query_NxD.astype(float), asked, strict=True):
                relevant_M, counts_M = judged[n]
                found.append(ranking_metrics((gallery_MxD @ q_D)[counts_M], relevant_M[counts_M]))
            return {name: float(np.mean([m[name] for m in found])) for name in found[0]}

        found = {kind: ranked(x_NxD) for kind, x_NxD in (native | inverted).items()}
        for kind, x_NxD in (native | inverted).items():
            found[kind]["gap"] = float(np.linalg.norm(x_NxD.mean(0) - gallery_MxD.mean(0)))
        for kind, x_NxD in inverted.items():
            found[kind]["cosine"] = float(np.mean(np.sum(x_NxD * target_NxD, axis=1)))
        level = ranked(np.zeros_like(target_NxD))
        self.protocol = {
            "queries": len(asked),
            "queries_without_relevant": len(chosen) - len(asked),
            "gallery": len(gallery_MxD),
            "chance": {f"{kind}/{name}": x for kind in found for name, x in level.items()},
        }
        return with_gains(found, "mAP")

    def _judged(self, queries: Entries, gallery: Entries, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Which entries of the gallery are relevant for query n, and which count: bool [M] both."""
        record = queries.records[queries.record_N[n]]

        def listed(fields: Sequence[str]) -> np.ndarray:
            return np.isin(gallery.record_N, [place for f in fields for place in record[f]])

        counts_M = ~listed(self._ignored)
        if self._within:
            counts_M[n] = False
        if self._relevant:
            return listed(self._relevant) & counts_M, counts_M
        labels_M = np.array([r["label"] for r in gallery.records])[gallery.record_N]
        return (labels_M == record["label"]) & counts_M, counts_M

    def _record(self, place: int, record: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
        """The fields of a record that are read, and its label."""
        where = f"Record {place} of evaluator {self.name!r}"
        found = {field: field_of(record, field, where) for field in fields}
        if self._label is None or self._relevant:
            return found | {"label": place}
        return found | {"label": field_of(record, self._label, where)}


class ImageRetrieval(Retrieval):
    """Image-to-image retrieval; queries are inverted by OTI, and all images of a record count. See `Retrieval`."""

    kind = OTI

    def _entries(self, params: Any, source: Any, fields: Sequence[str]) -> Entries:
        records: list[dict[str, Any]] = []
        visit = lambda place, record: records.append(self._record(place, record, fields))  # noqa: E731
        how = visit, CHUNK, self.name
        return Entries(*embed_records(self._encoder, params, source, *how), records)


class TextRetrieval(Retrieval):
    """Text-to-text retrieval; queries are inverted by OVI, and all `text` of a record count. See `Retrieval`."""

    kind = OVI

    def _entries(self, params: Any, source: Any, fields: Sequence[str]) -> Entries:
        where = f"of evaluator {self.name!r}"
        all_records = [source[i] for i in range(len(source))]
        records = [self._record(i, r, fields) for i, r in enumerate(all_records)]
        texts = [texts_of(r, ("text",), f"Record {i} {where}") for i, r in enumerate(all_records)]
        flat = [text for some in texts for text in some]
        record_N = np.repeat(np.arange(len(texts)), [len(some) for some in texts])
        return Entries(embed_texts(self._encoder, params, flat, CHUNK), record_N, records)


class ZeroShot:
    """Accuracy of native features (`native/acc@1`), of OTI images against texts, and of images against OVI classes.

    Args:
      name, encoder, source: as for every evaluator; records have `image` and the label.
      classes, templates, label_field: as of `clipjax.evals.zero_shot`.
      oti, ovi: settings of the two.
      count: of records, evenly spaced; None: all.
    """

    def __init__(
        self,
        name: str,
        encoder: Any,
        source: Any,
        *,
        classes: Any = None,
        templates: str | Sequence[str] = "simple",
        label_field: str = "label",
        oti: Mapping[str, Any] | None = None,
        ovi: Mapping[str, Any] | None = None,
        count: int | None = None,
    ):
        self._records = [source[int(i)] for i in spread(len(source), count)]
        self.name, self._encoder, self._field = name, encoder, label_field
        self._classes = Classes(name, classes, templates)
        self._oti = make_inversion(OTI, oti, name, encoder)
        self._ovi = make_inversion(OVI, ovi, name, encoder)
        kinds = [*steps_of(self._oti), *steps_of(self._ovi)]
        self.units = {f"{kind}/gain": "%" for kind in kinds}

    def run(self, params: Any) -> Metrics:
        """The library's metrics of `zero_shot` for each kind, and `gain` in acc@1."""
        labels: list[Any] = []

        def visit(place: int, record: dict[str, Any]) -> None:
            where = f"Record {place} of evaluator {self.name!r}"
            labels.append(self._classes.check(field_of(record, self._field, where)))

        image_PxD, record_P = embed_records(
            self._encoder, params, self._records, visit, CHUNK, self.name
        )
        names = self._classes.names(labels)
        labels_P = self._classes.indices([labels[r] for r in record_P], record_P, names)
        class_CxD = self._classes.classifier(self._encoder, params, names.values(), CHUNK)
        pairs = {"native": (image_PxD, class_CxD)}
        for kind, x_PxD in steps_of(self._oti, self._oti(params, image_PxD)).items():
            pairs[kind] = x_PxD, class_CxD
        for kind, x_CxD in steps_of(self._ovi, self._ovi(params, class_CxD)).items():
            pairs[kind] = image_PxD, x_CxD
        found = {kind: nearest_class_metrics(*pair, labels_P) for kind, pair in pairs.items()}
        level = chance(found["native"], len(names))
        levels = {f"{kind}/{name}": x for kind in found for name, x in level.items()}
        about = self._classes.protocol(names)
        self.protocol = {"images": len(image_PxD), **about, "chance": levels}
        return with_gains(found, "acc@1")


class Gap:
    """`gap`: distance of the mean image feature from the mean feature of the texts in `text_field`, in [0, 2]."""

    units = {"gap": ""}  # noqa: RUF012

    def __init__(self, name: str, encoder: Any, source: Any, *, text_field: str = "text"):
        self.name, self._encoder, self._source, self._field = name, encoder, source, text_field

    def run(self, params: Any) -> Metrics:
        """See the class."""
        texts: list[str] = []

        def visit(place: int, record: dict[str, Any]) -> None:
            where = f"Record {place} of evaluator {self.name!r}"
            texts.extend(texts_of(record, (self._field,), where))

        image_PxD, _ = embed_records(self._encoder, params, self._source, visit, CHUNK, self.name)
        text_TxD = embed_texts(self._encoder, params, texts, CHUNK)
        self.protocol = {"images": len(image_PxD), "texts": len(text_TxD)}
        return {"gap": float(np.linalg.norm(image_PxD.mean(0) - text_TxD.mean(0)))}


def make_inversion(kind: type[Inversion], settings: Any, name: str, encoder: Any) -> Inversion:
    """An inversion of the settings in a config, which are checked."""
    what = f"The {kind.__name__} of evaluator {name!r}"
    return registry.call(kind, dict(settings or {}), what, encoder=encoder)


def steps_of(inversion: Inversion, inverted_NxTxD: np.ndarray | None = None) -> dict[str, Any]:
    """`oti_150` and the like -> the features [N, D] after so many steps; None without features."""
    names = [f"{type(inversion).__name__.lower()}_{steps}" for steps in inversion.steps]
    if inverted_NxTxD is None:
        return dict.fromkeys(names)
    return {name: inverted_NxTxD[:, t] for t, name in enumerate(names)}


def spread(total: int, count: int | None) -> np.ndarray:
    """`count` places of `total`, evenly spaced, or all: int [n]."""
    return np.linspace(0, total - 1, min(count or total, total)).astype(int)


def with_gains(found: Mapping[str, Metrics], metric: str) -> Metrics:
    """All metrics by name, and how far each kind's `metric` is above the native one."""
    above = {k: {"gain": m[metric] - found["native"][metric]} for k, m in found.items()}
    return {
        f"{kind}/{name}": x
        for kind, m in found.items()
        for name, x in (m | (above[kind] if kind != "native" else {})).items()
    }
