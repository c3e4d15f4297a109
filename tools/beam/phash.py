"""A perceptual hash of an image, and how to find all pairs of near hashes without comparing all pairs.

The hash is pHash: the signs, against their median, of 64 low frequencies of a cosine transform of the image's 32x32
grey version (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1). Two
changes: the image is averaged down to 32x32, where pHash blurs it and picks pixels; and the sums are of whole
numbers, so that they are the same on every machine.

Pairs are found by blocks (Manku, Jain, Das Sarma, "Detecting Near-Duplicates for Web Crawling", 2007): of B blocks of
a hash, two hashes within D bits differ in D blocks at most, so they agree on some B - D of them. Each choice of B - D
blocks is a key; hashes with the same key are compared. No pair within D is missed, for any B > D.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from clipjax.data.commands.hashes import hash_images
from clipjax.data.encoded_image import EncodedImage

BITS = 64
MAX_DISTANCE = 10
_SIDE, _LOW = 32, 8
_DECODED = 2 * _SIDE  # pixels of the shorter side that are decoded at least
_FRACTION = 1 << 12  # of the cosines, and with 1/64 of a grey level the unit of a frequency
# An image of which no frequency reaches this many grey levels (of 255) is flat here: its bits would be noise.
_FLAT = 1.0


def _cosines() -> np.ndarray:
    u, x = np.arange(1, _LOW + 1)[:, None], np.arange(_SIDE)
    found = math.sqrt(2 / _SIDE) * np.cos(math.pi * u * (2 * x + 1) / (2 * _SIDE))
    return np.rint(_FRACTION * found).astype(np.int64)


_COSINES_8x32 = _cosines()


def fingerprint(record: Mapping[str, Any]) -> tuple[bytes, bytes, int]:
    """(node, sha256 of the image's bytes, its pixels).

    The node is what images are told apart by: b"p" and the 8 bytes of the hash; for images without one (flat ones,
    several in a record) b"s" and the sha256, so that they equal their exact copies only.

    Raises:
      BadRecord: the image cannot be used.
    """
    images = record.get("image")
    images = list(images) if isinstance(images, list | tuple) else [images]
    exact = bytes.fromhex(hash_images(images))
    imgs = [EncodedImage(image) for image in images]
    pixels = sum(p.size[0] * p.size[1] for p in imgs)
    found = [phash(p) for p in imgs]  # decodes them all, whether their hashes are of use or not
    if len(found) != 1 or found[0] is None:
        return b"s" + exact, exact, pixels
    return b"p" + found[0].to_bytes(8, "big"), exact, pixels


def phash(img: EncodedImage) -> int | None:
    """64 bits, or None for an image that is flat.

    Raises:
      BadRecord: broken or truncated.
    """
    grey = Image.fromarray(img.pixels(_DECODED / min(img.size))).convert("L").convert("F")
    small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float64)
    return bits_of(np.rint(64 * small).astype(np.int64))


def bits_of(grey_32x32: np.ndarray) -> int | None:
    """The hash of a grey image, int64 in 64ths of a grey level; None if it is flat."""
    frequencies = (_COSINES_8x32 @ grey_32x32 @ _COSINES_8x32.T).ravel()
    # An amplitude a of a cosine in x and y makes a frequency of a * 32 / 2.
    if np.abs(frequencies).max() < _FLAT * 64 * _FRACTION**2 * _SIDE / 2:
        return None
    ordered = np.sort(frequencies)
    above = 2 * frequencies > ordered[BITS // 2 - 1] + ordered[BITS // 2]
    return int.from_bytes(np.packbits(above).tobytes(), "big")


class Blocks:
    """The keys by which hashes within `distance` bits of each other are found.

    Args:
      distance: of bits.
      count: blocks of a hash, more than `distance`; their sizes differ by at most one bit.

    Attributes:
      choices: the blocks of every key; 256 keys at most.
    """

    def __init__(self, distance: int, count: int):
        self.distance = distance
        edges = [BITS * b // count for b in range(count + 1)]
        self._blocks = [(1 << high) - (1 << low) for low, high in itertools.pairwise(edges)]
        self.choices = list(itertools.combinations(range(count), count - distance))
        self._masks = [sum(self._blocks[b] for b in chosen) for chosen in self.choices]

    def keys(self, value: int) -> Iterator[bytes]:
        """The keys of a hash; the first byte is the number of the choice."""
        for number, mask in enumerate(self._masks):
            yield bytes([number]) + (value & mask).to_bytes(8, "big")

    def near(self, first_M: np.ndarray, other_N: np.ndarray, choice: int) -> np.ndarray:
        """Pairs within the distance of hashes that share a key, those alone of which this is the first shared one.

        Args:
          first_M, other_N: uint64.
          choice: number of the key's choice.

        Returns:
          int [P, 2], places in `first_M` and `other_N`. Costs M * N comparisons, and nine bytes for each.
        """
        different_MxN = first_M[:, None] ^ other_N[None, :]
        found = np.argwhere(np.bitwise_count(different_MxN) <= self.distance)
        different_P = different_MxN[found[:, 0], found[:, 1]]
        # Of all choices of blocks that agree the first is that of the lowest ones.
        chosen = self.choices[choice]
        earlier = np.ones(len(found), bool)
        for block in set(range(chosen[-1])) - set(chosen):
            earlier &= (different_P & np.uint64(self._blocks[block])) != 0
        return found[earlier]


def best_blocks(distance: int, count: int) -> int:
    """How many blocks cost least for `count` hashes: more keys to a hash, or more hashes to a key.

    A key costs about as much as 2,000 comparisons (shuffled on DirectRunner; a comparison is a few ns).
    """

    def cost(blocks: int) -> float:
        chosen = math.comb(blocks, distance)
        return chosen * (2_000 + count / 2 / 2 ** (BITS * (blocks - distance) / blocks))

    fits = [b for b in range(distance + 1, 33) if math.comb(b, distance) <= 256]
    return min(fits, key=cost)


def forest(pairs_Px2: np.ndarray, count: int) -> np.ndarray:
    """As few pairs as connect what `pairs_Px2` connects: int [Q, 2] with Q < count."""
    if not len(pairs_Px2):
        return np.zeros((0, 2), np.int64)
    ones = np.ones(len(pairs_Px2), bool)
    graph = coo_array((ones, (pairs_Px2[:, 0], pairs_Px2[:, 1])), (count, count))
    label = connected_components(graph, directed=False)[1]
    first = np.unique(label, return_index=True)[1][label]
    members = np.flatnonzero(first != np.arange(count))
    return np.stack([first[members], members], 1)


def components(edges_Ex2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(nodes that have an edge, the lowest node of each one's component), both uint64 [V]."""
    nodes, place = np.unique(edges_Ex2, return_inverse=True)
    place = place.reshape(-1, 2)
    star = forest(place, len(nodes))
    label = np.arange(len(nodes))
    label[star[:, 1]] = star[:, 0]
    return nodes, nodes[label]
