"""Retrieval between regions and their texts, both ways."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipjax.evals import metrics
from clipjax.evals.records import embed_texts
from clipjax.evals.regions.gallery import GALLERY_NOTE, nearest_texts
from clipjax.evals.regions.records import Reader, RegionEncoder, Regions, first_text
from clipjax.evals.templates import text_hash
from clipjax.log.pages.region_galleries import RegionGallery


class RegionRetrieval:
    """Region-to-text and text-to-region recall at 1, 5 and 10, over all regions of a source.

    CLOC's protocol on GRIT (Chen et al. 2025, section 4.1) is recall at 10, because phrases repeat. Equal texts are one
    entry here that is right for all regions that have it (`merge_duplicates`), so that no right answer is a miss.

    Args:
        name: the evaluator's name, which prefixes its metrics.
        source: records with one `image`, `boxes` and a text, or a list of them, for each box.
        encoder: the model's encoder.
        text_field: which field of a record holds the texts; of several of a region the first is used.
        merge_duplicates: whether equal texts of different regions are one entry.
        how: regions are embedded: "model", "roi_align" or "crop", see `Encoder.regions`.
        box_format: of the boxes: "xyxy", "xywh", "xyxy_pixels" or "xywh_pixels".
        chunk: records, or texts, given to the encoder at once.

    Attributes:
        name: as given.
        protocol: after `run`, what the numbers depend on: counts, a hash of the texts, chance levels.
    """

    KS = (1, 5, 10)

    def __init__(
        self,
        name: str,
        source: Sequence[dict[str, Any]],
        encoder: RegionEncoder,
        *,
        text_field: str = "region_text",
        merge_duplicates: bool = True,
        how: str = "model",
        box_format: str = "xyxy",
        chunk: int = 256,
    ):
        encoder.check_regions(how)
        self.name = name
        self.protocol: dict[str, Any] = {}
        self._encoder, self._chunk = encoder, chunk
        self._text_field, self._merge = text_field, merge_duplicates
        self._reader = Reader(
            name,
            source,
            encoder,
            field=text_field,
            value=first_text,
            how=how,
            box_format=box_format,
            chunk=chunk,
        )

    def run(self, params: Any) -> dict[str, float]:
        """Returns `region_to_text/R@k` and `text_to_region/R@k`, in [0, 1]."""
        gallery, parts = _Texts(self._merge), []
        for found in self._reader:
            parts.append(self._reader.embed(params, found))
            gallery.add(found)
        region_RxD = np.concatenate(parts)
        text_TxD = embed_texts(self._encoder, params, gallery.texts, self._chunk)
        regions, texts = len(region_RxD), len(text_TxD)
        right_texts, right_regions = gallery.text_of_region, gallery.regions_of_text
        self.protocol = {
            "kind": "region_retrieval",
            **self._reader.protocol(),
            "texts": texts,
            "texts_sha256": text_hash(gallery.texts),
            "text_field": self._text_field,
            "merge_duplicates": self._merge,
            "chance": _both_ways(
                metrics.chance_recall(right_texts, regions, texts, self.KS),
                metrics.chance_recall(right_regions, texts, regions, self.KS),
            ),
        }
        return _both_ways(
            metrics.retrieval_recall(region_RxD, text_TxD, right_texts, self.KS),
            metrics.retrieval_recall(text_TxD, region_RxD, right_regions, self.KS),
        )

    def galleries(self, params: Any, n: int = 8) -> list[RegionGallery]:
        """For a report: regions of n images with their nearest texts, of all that there are."""
        gallery = _Texts(merge=True)
        for found in self._reader:
            gallery.add(found)
        text_TxD = embed_texts(self._encoder, params, gallery.texts, self._chunk)
        number = {text: i for i, text in enumerate(gallery.texts)}
        images = []
        for one in self._reader.spread(n):
            region_MxD = self._reader.embed(params, [one])
            right = [number[text] for text in one.values]
            regions = nearest_texts(one, region_MxD, text_TxD, gallery.texts, right)
            images.append((one.image, regions))
        return [RegionGallery(f"{self.name}: texts for a region", images, GALLERY_NOTE)]


class _Texts:
    """The texts of all regions, and which belongs to which.

    Attributes:
        texts: T texts.
        text_of_region: for each region the index of its text.
        regions_of_text: for each text the indices of its regions.
    """

    def __init__(self, merge: bool):
        self.texts: list[str] = []
        self.text_of_region: list[int] = []
        self.regions_of_text: list[list[int]] = []
        self._merge, self._number = merge, {}

    def add(self, found: Sequence[Regions]) -> None:
        """Adds the regions of some records, in order."""
        for text in (text for one in found for text in one.values):
            region = len(self.text_of_region)
            number = self._number.get(text) if self._merge else None
            if number is None:
                number = self._number[text] = len(self.texts)
                self.texts.append(text)
                self.regions_of_text.append([])
            self.text_of_region.append(number)
            self.regions_of_text[number].append(region)


def _both_ways(to_text: dict[str, float], to_region: dict[str, float]) -> dict[str, float]:
    return {f"region_to_text/{k}": v for k, v in to_text.items()} | {
        f"text_to_region/{k}": v for k, v in to_region.items()
    }
