"""Which records show the same image as another one: exact copies by sha256, near ones by a perceptual hash.

Images are the same if their hashes differ in few bits, or if both are the same as a third one: a connected
component of which the largest image is kept, of equally large ones the first.

Components: the graph's nodes are different hashes, not records, and groups of near hashes, which may have edges by the
square, give a spanning forest only. Forests are merged wherever Beam combines, and what is left, less edges than
nodes, goes to one worker, which needs about 180 bytes a node that has an edge. That is exact after one pass, however
long the chains are, where passing labels along the edges takes as many rounds as the longest chain.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.transforms import combiners

from clipjax.data.bad import BadRecord
from clipjax.errors import UserError
from tools.beam.common import Job, read_all_records, write_removed
from tools.beam.phash import (
    MAX_DISTANCE,
    Blocks,
    best_blocks,
    components,
    fingerprint,
    forest,
)

EXACT = "exact copy"
NEAR = "near duplicate"
PART = 2048  # hashes that are compared with so many at once; larger groups are shared out
MERGE = 1 << 20  # edges after which a forest is made of them


class Fingerprint(beam.DoFn):
    """(id, record) -> (sha256, (node, id, pixels)); (id, {"reason": ...}) as `left_out`."""

    def process(self, item: tuple[int, dict[str, Any]]) -> Iterator[Any]:
        """Decodes a small version of the image."""
        ident, record = item
        try:
            node, exact, pixels = fingerprint(record)
        except BadRecord as error:
            yield beam.pvalue.TaggedOutput("left_out", (ident, {"reason": str(error)}))
        else:
            yield exact, (node, ident, pixels)


def mark_copies(group: tuple[bytes, Iterable[tuple[bytes, int, int]]]) -> Iterator[Any]:
    """Records of the same bytes -> (node, (id, pixels, whether it is a copy of an earlier one))."""
    _, found = group
    first = min(ident for _, ident, _ in found)
    for node, ident, pixels in found:
        yield node, (ident, pixels, ident != first)


class Compare(beam.DoFn):
    """(key, hashes) -> edges between near ones; groups that are too large come as `parts`, to be shared out.

    Edges are bytes of uint64 [E, 2].
    """

    def __init__(self, blocks: Blocks, part: int):
        self._blocks, self._part = blocks, part

    def process(self, group: tuple[bytes, Iterable[bytes]]) -> Iterator[Any]:
        """Compares all of a group; of a large one each part with each, elsewhere."""
        key, hashes = group
        size = 8 * self._part
        data = b"".join(hashes)
        if len(data) <= size:
            yield from self.compare((key[0], data, b""))
            return
        parts = [data[s : s + size] for s in range(0, len(data), size)]
        for number, first in enumerate(parts):
            for other in (b"", *parts[number + 1 :]):
                yield beam.pvalue.TaggedOutput("parts", (key[0], first, other))
        yield beam.pvalue.TaggedOutput("split", {"groups shared out": 1})

    def compare(self, pair: tuple[int, bytes, bytes]) -> Iterator[bytes]:
        """Two parts, or one with itself."""
        choice, first, other = pair
        a, b = (np.frombuffer(data, ">u8").astype(np.uint64) for data in (first, other or first))
        pairs = self._blocks.near(a, b, choice)
        if not other:
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            nodes = a
        else:
            pairs, nodes = pairs + np.array([0, len(a)]), np.concatenate([a, b])
        edges = nodes[forest(pairs, len(nodes))]
        if len(edges):
            yield edges.tobytes()


class Forest(beam.CombineFn):
    """Bytes of edges -> bytes of a forest of the same components."""

    def create_accumulator(self) -> list[bytes]:
        """No edges."""
        return []

    def add_input(self, found: list[bytes], edges: bytes) -> list[bytes]:
        """Adds edges; makes a forest where they are many."""
        found.append(edges)
        large = len(found) > 4096 or sum(map(len, found[1:])) > 16 * MERGE
        return self.compact(found) if large else found

    def merge_accumulators(self, several: Iterable[list[bytes]]) -> list[bytes]:
        """A forest of forests."""
        return self.compact([edges for found in several for edges in found])

    def compact(self, found: list[bytes]) -> list[bytes]:
        """One piece of bytes."""
        nodes, label = components(_edges(found))
        kept = nodes != label
        return [np.stack([label[kept], nodes[kept]], 1).tobytes()]

    def extract_output(self, found: list[bytes]) -> bytes:
        """(lowest of the component, node) each."""
        return self.compact(found)[0]


def _edges(found: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(found), np.uint64).reshape(-1, 2)


def labels(edges: bytes) -> Iterator[tuple[bytes, tuple[str, bytes]]]:
    """What `Forest` gives -> (node, ("label", lowest node of its component))."""
    for label, node in _edges([edges]).tolist():
        yield b"p" + node.to_bytes(8, "big"), ("label", b"p" + label.to_bytes(8, "big"))


def to_component(group: tuple[bytes, Iterable[tuple[str, Any]]]) -> Iterator[Any]:
    """(node, records and maybe its label) -> (label, (node, id, pixels, copy))."""
    node, found = group
    label = next((value for kind, value in found if kind == "label"), node)
    for kind, value in found:
        if kind == "record":
            yield label, (node, *value)


class Choose(beam.DoFn):
    """(label, records) -> (id, facts) of all but the one that is kept, and counts as `counts`."""

    def __init__(self, distance: int):
        self._distance = distance

    def process(self, group: tuple[bytes, Iterable[tuple[bytes, int, int, bool]]]) -> Iterator[Any]:
        """Goes over a component twice, which need not fit into memory."""
        _, found = group
        size, chained = 0, 0
        best: Any = None
        for node, ident, pixels, _ in found:
            size += 1
            if best is None or (pixels, -ident) > (best[2], -best[1]):
                best = (node, ident, pixels)
        if size == 1:
            return
        for node, ident, _, copy in found:
            if ident == best[1]:
                continue
            facts = {"reason": EXACT if copy else NEAR, "of": best[1]}
            if node[:1] == b"p":
                facts["distance"] = (_number(node) ^ _number(best[0])).bit_count()
                chained += facts["distance"] > self._distance
            yield ident, facts
        counts = {"groups of duplicates": 1, "largest group": size}
        if chained:
            counts["near duplicates only through others"] = chained
        yield beam.pvalue.TaggedOutput("counts", counts)


def _number(node: bytes) -> int:
    return int.from_bytes(node[1:], "big")


def near_labels(hashes: Any, blocks: Blocks, part: int) -> tuple[Any, Any]:
    """The components of near hashes.

    Args:
      hashes: bytes of 8, each once.
      blocks, part: see `Compare`.

    Returns:
      (what `labels` gives, counts).
    """
    compare = Compare(blocks, part)
    groups = (
        hashes
        | "Keys"
        >> beam.FlatMap(
            lambda h: ((k, h) for k in blocks.keys(int.from_bytes(h, "big")))
        ).with_output_types(tuple[bytes, bytes])
        | "By key" >> beam.GroupByKey()
        | "Compare" >> beam.ParDo(compare).with_outputs("parts", "split", main="edges")
    )
    shared = (
        groups.parts
        | "Share out parts" >> beam.Reshuffle()
        | "Compare parts" >> beam.FlatMap(compare.compare)
    )
    found = (
        (groups.edges, shared)
        | "All edges" >> beam.Flatten()
        | "Forest" >> beam.CombineGlobally(Forest())
        | "Labels" >> beam.FlatMap(labels)
    )
    return found, groups.split


def build(
    pipeline: Any, job: Job, distance: int, blocks: int | None = None, part: int = PART
) -> None:
    """Adds the job to a pipeline.

    Args:
      pipeline: Beam's.
      job: the sources.
      distance: bits by which hashes of the same image differ at most.
      blocks: of a hash; see phash.py. None: what costs least for so many records.
      part: hashes that are compared at once.

    Raises:
      UserError: a distance that is not a number of 0 to `MAX_DISTANCE`.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise UserError(f"--distance must be from 0 to {MAX_DISTANCE}, not {distance}.")
    blocks = blocks or best_blocks(distance, sum(job.lengths.values()))
    found = read_all_records(pipeline, job)
    prints = found.records | "Fingerprint" >> beam.ParDo(Fingerprint()).with_outputs(
        "left_out", main="prints"
    )
    records = (
        prints.prints | "By bytes" >> beam.GroupByKey() | "Copies" >> beam.FlatMap(mark_copies)
    )
    nodes = records | "First ones" >> beam.Filter(lambda r: not r[1][2]) | "Nodes" >> beam.Keys()
    plain = (
        nodes
        | "Without hash" >> beam.Filter(lambda n: n[:1] == b"s")
        | "Count those" >> combiners.Count.Globally()
        | "As count" >> beam.Map(lambda n: {"images without a perceptual hash": n})
    )
    notes, everything = (
        [plain],
        [records | "As record" >> beam.Map(lambda r: (r[0], ("record", r[1])))],
    )
    if distance:
        hashes = (
            nodes
            | "With hash" >> beam.Filter(lambda n: n[:1] == b"p")
            | "Hashes" >> beam.Map(lambda n: n[1:]).with_output_types(bytes)
            | "Each once" >> beam.Distinct()
        )
        of_components, split = near_labels(hashes, Blocks(distance, blocks), part)
        notes.append(split)
        everything.append(of_components)
    chosen = (
        everything
        | "With labels" >> beam.Flatten()
        | "By node" >> beam.GroupByKey()
        | "To component" >> beam.FlatMap(to_component)
        | "By component" >> beam.GroupByKey()
        | "Choose" >> beam.ParDo(Choose(distance)).with_outputs("counts", main="removed")
    )
    removed = (
        (found.left_out, prints.left_out, chosen.removed) | "All removed" >> beam.Flatten()
    )  # fmt: skip
    plan = {"job": "dedup", "distance": distance, "blocks": blocks if distance else None}
    write_removed(removed, job, plan, [*notes, chosen.counts])
