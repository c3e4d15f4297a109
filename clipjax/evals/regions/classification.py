"""Zero-shot classification of regions whose boxes are given."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipjax.evals import metrics
from clipjax.evals.classes import Classes, chance
from clipjax.evals.regions.gallery import GALLERY_NOTE, nearest_texts
from clipjax.evals.regions.records import Reader, RegionEncoder
from clipjax.log.pages.region_galleries import RegionGallery


class RegionClassification:
    """Accuracy of true boxes against classes that are given by name.

    CLOC's protocol (Chen et al. 2025, section 4.1): class names without templates, the nearest of all classes, the mean
    over classes of their recall.

    Args:
        name: the evaluator's name, which prefixes its metrics.
        source: records with one `image`, `boxes` and one label for each box.
        encoder: the model's encoder.
        classes, templates: names of the classes and what they are put into, see `Classes`.
        label_field: which field of a record holds its labels.
        how: regions are embedded: "model", "roi_align" or "crop", see `Encoder.regions`.
        box_format: of the boxes: "xyxy", "xywh", "xyxy_pixels" or "xywh_pixels".
        chunk: records, or prompts, given to the encoder at once.

    Attributes:
        name: as given.
        protocol: after `run`, what the numbers depend on: counts, hashes, and the chance level of each metric.
    """

    def __init__(
        self,
        name: str,
        source: Sequence[dict[str, Any]],
        encoder: RegionEncoder,
        *,
        classes: Sequence[str] | dict[str, Any] | str | None = None,
        templates: str | Sequence[str] = "none",
        label_field: str = "names",
        how: str = "model",
        box_format: str = "xyxy",
        chunk: int = 256,
    ):
        encoder.check_regions(how)
        self.name = name
        self.protocol: dict[str, Any] = {}
        self._encoder, self._chunk = encoder, chunk
        self._label_field = label_field
        self._classes = Classes(name, classes, templates)
        self._reader = Reader(
            name,
            source,
            encoder,
            field=label_field,
            value=self._classes.check,
            how=how,
            box_format=box_format,
            chunk=chunk,
        )

    def run(self, params: Any) -> dict[str, float]:
        """Returns `mAcc` (over the classes that occur), `acc@1` and `acc@5` (above 5 classes), in [0, 1]."""
        labels: list[Any] = []
        records: list[int] = []
        parts = []
        for found in self._reader:
            parts.append(self._reader.embed(params, found))
            for one in found:
                labels += one.values
                records += [one.record] * len(one.values)
        names = self._classes.names(labels)
        labels_R = self._classes.indices(labels, records, names)
        class_CxD = self._classifier(params, names)
        result = metrics.nearest_class_metrics(np.concatenate(parts), class_CxD, labels_R)
        result = {"mAcc": result.pop("mean_per_class"), **result}
        self.protocol = {
            "kind": "region_classification",
            **self._reader.protocol(),
            "classes_occurring": len(np.unique(labels_R)),
            **self._classes.protocol(names),
            "label_field": self._label_field,
            "chance": chance(result, len(names)),
        }
        return result

    def galleries(self, params: Any, n: int = 8) -> list[RegionGallery]:
        """For a report: regions of n images with their nearest classes."""
        labels = (
            [label for found in self._reader for one in found for label in one.values]
            if self._classes.open
            else []
        )
        names = self._classes.names(labels)
        shown = [group[0] for group in names.values()]
        class_CxD = self._classifier(params, names)
        images = []
        for one in self._reader.spread(n):
            region_MxD = self._reader.embed(params, [one])
            right = self._classes.indices(one.values, [one.record] * len(one.values), names)
            images.append((one.image, nearest_texts(one, region_MxD, class_CxD, shown, right)))
        return [RegionGallery(f"{self.name}: classes for a region", images, GALLERY_NOTE)]

    def _classifier(self, params: Any, names: dict[str, list[str]]) -> np.ndarray:
        return self._classes.classifier(self._encoder, params, names.values(), self._chunk)
