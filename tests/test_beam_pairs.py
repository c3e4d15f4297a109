"""Near-duplicates: the hash, the pairs within a distance, and their components, against plain Python."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("apache_beam")

import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from clipjax.data.encoded_image import EncodedImage
from tests.tiny_images import jpeg, noise
from tools.beam import (
    dedup,
    phash,
    running,
)

PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "coins", "moon")


def test_hash_is_the_sign_of_a_cosine_transform():
    from scipy.fft import dctn

    for seed in range(50):
        grey = np.random.default_rng(seed).integers(0, 64 * 255, (32, 32))
        low = dctn(grey.astype(np.float64), norm="ortho")[1:9, 1:9].ravel()
        value = phash.bits_of(grey)
        bits = np.array([value >> (63 - n) & 1 for n in range(64)], bool)
        sure = np.abs(low - np.median(low)) > 1.0  # of the rounding of the cosines
        assert sure.sum() > 55
        assert (bits == (low > np.median(low)))[sure].all()


def test_flat_images_have_no_hash():
    ramp = np.tile(np.arange(32) * 64, (32, 1))  # no frequency in y
    assert phash.bits_of(np.full((32, 32), 64 * 128)) is None
    assert phash.bits_of(ramp) is None
    page = Image.new("RGB", (200, 100), (250, 250, 250))
    node, exact, pixels = phash.fingerprint({"image": [jpeg(page)]})
    assert (node, pixels) == (b"s" + exact, 20_000)


@pytest.mark.parametrize("name", PHOTOS)
def test_changes_that_leave_the_image(name):
    from skimage import data

    photo = Image.fromarray(getattr(data, name)()).convert("RGB")
    width, height = photo.size
    first = phash.phash(EncodedImage(jpeg(photo)))

    def distance(image, quality=90):
        return (first ^ phash.phash(EncodedImage(jpeg(image, quality)))).bit_count()

    edge = (width // 100, height // 100, width - width // 100, height - height // 100)
    assert distance(photo, 60) <= 4
    assert distance(photo.resize((width // 2, height // 2)), 75) <= 4
    assert distance(photo.crop(edge)) <= 8
    assert distance(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > 20
    assert distance(noise(1)) > 20


def clusters(draw_from):
    """Hashes, some of them a few bits from others."""
    near = st.tuples(st.integers(0, 2**64 - 1), st.lists(st.lists(st.integers(0, 63), max_size=9)))
    return st.lists(near, min_size=1, max_size=draw_from).map(
        lambda groups: sorted(
            {
                base ^ int(np.bitwise_xor.reduce([1 << b for b in bits] or [0], dtype=np.uint64))
                for base, changes in groups
                for bits in [[], *changes]
            }
        )
    )


def brute_force(hashes, distance):
    return {
        (a, b)
        for i, a in enumerate(hashes)
        for b in hashes[i + 1 :]
        if (a ^ b).bit_count() <= distance
    }


def union(hashes, pairs):
    """Node -> lowest node of its component, by repeated passing."""
    label = {h: h for h in hashes}
    changed = True
    while changed:
        changed = False
        for a, b in pairs:
            low = min(label[a], label[b])
            changed |= label[a] != low or label[b] != low
            label[a] = label[b] = low
    return label


@settings(max_examples=150, deadline=None)
@given(clusters(6), st.integers(0, 10), st.integers(1, 3))
def test_every_pair_is_found_once(hashes, distance, more):
    blocks = phash.Blocks(distance, distance + more if distance < 6 else distance + 1)
    groups = {}
    for value in hashes:
        for key in blocks.keys(value):
            groups.setdefault(key, []).append(value)
    found = Counter()
    for key, members in groups.items():
        values = np.array(members, np.uint64)
        for a, b in blocks.near(values, values, key[0]).tolist():
            if a < b:
                found[tuple(sorted((members[a], members[b])))] += 1
    assert found == dict.fromkeys(brute_force(hashes, distance), 1)


def test_keys_suit_the_size():
    assert phash.best_blocks(4, 1000) == 5
    assert phash.best_blocks(4, 10**9) > 5
    for distance in range(1, phash.MAX_DISTANCE + 1):
        for count in (10**3, 10**6, 10**10):
            blocks = phash.Blocks(distance, phash.best_blocks(distance, count))
            assert 0 < len(blocks.choices) <= 256


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_forests(pairs):
    array = np.array(pairs, np.int64).reshape(-1, 2)
    expected = union(range(31), pairs)
    tree = phash.forest(array, 31)
    assert len(tree) == 31 - len(set(expected.values()))
    assert union(range(31), tree.tolist()) == expected
    combine = dedup.Forest()
    parts = [combine.add_input([], array.astype(np.uint64)[n::3].tobytes()) for n in range(3)]
    edges = dedup._edges([combine.extract_output(combine.merge_accumulators(parts))])
    assert union(range(31), edges.tolist()) == expected


@pytest.mark.parametrize(("distance", "part"), [(3, 2048), (4, 7), (10, 7)])
def test_components_are_those_of_all_pairs(distance, part):
    rng = np.random.default_rng(distance)
    hashes = set()
    for _ in range(25):
        value = int(rng.integers(0, 2**63))
        for _ in range(8):  # a chain
            hashes.add(value)
            for bit in rng.integers(0, 64, 3):
                value ^= 1 << int(bit)
    # One key holds them all, so that the group is shared out.
    hashes |= {1 << int(a) | 1 << int(b) for a, b in rng.integers(40, 64, (60, 2))}
    hashes = sorted(hashes)
    label = union(hashes, brute_force(hashes, distance))
    expected = {
        (b"p" + h.to_bytes(8, "big"), ("label", b"p" + low.to_bytes(8, "big")))
        for h, low in label.items()
        if h != low
    }

    def check_labels(found):
        assert set(found) == expected
        assert len(found) == len(expected)

    def check_split(found):
        assert bool(found) == (part < 10)

    blocks = phash.Blocks(distance, distance + 2 if distance < 5 else distance + 1)
    running.travels(*(f"tools.beam.{name}" for name in ("phash", "dedup", "common")))
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        nodes = pipeline | beam.Create([h.to_bytes(8, "big") for h in hashes])
        labels, split = dedup.near_labels(nodes, blocks, part)
        assert_that(labels, check_labels, label="labels")
        assert_that(split, check_split, label="split")
