"""The stream is a pure function of (seed, place): hosts, batches, workers and restarts change nothing."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipjax.data.pipeline import HostView, batches
from clipjax.data.stream import COUNTERS, SOURCE_BITS, Stream
from clipjax.errors import UserError
from tests.tiny_run import tiny_config


def make_stream(sources=None, seed=0, **captions):
    config = tiny_config()
    with config.unlocked():
        config.data.sources = (
            {}
            if sources == {}
            else sources or {"noise": {"kind": "synthetic", "size": 12, "length": 50}}
        )
        config.data.features.text.captions = {"kind": "any"} | captions
        config.data.features.image.size = 8
        config.seed = seed
    return Stream(config)


def counted(sample):
    """What a sample's counts say, by name."""
    return {k: int(n) for k, n in zip(COUNTERS, sample["counts"], strict=True) if n}


def noise(length, **settings):
    return {"kind": "synthetic", "size": 12, "length": length, **settings}


def joined(iterator):
    """All batches of an iterator after one another."""
    parts = list(iterator)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def stream():
    return make_stream()


@pytest.fixture(scope="module")
def whole(stream):
    """Samples 0 to 96, in batches of 8 on one host."""
    return joined(batches(stream, 8, 0, 96, host=0, hosts=1))


def test_a_sample(stream):
    sample = stream[7]
    assert sample["image"].shape == (8, 8, 3)
    assert sample["image"].dtype == np.uint8
    assert sample["text"].shape == (8,)
    assert sample["text"].dtype == np.int32
    assert sample["sample_id"].dtype == np.int64
    assert sample["sample_seed"].dtype == np.uint32
    assert counted(sample) == {"cut": 1}  # "picture number N" is longer than eight letters
    assert_same(stream[7], make_stream()[7])
    assert not np.array_equal(sample["image"], make_stream(seed=1)[7]["image"])


def test_batches_are_the_stream_in_order(stream, whole):
    assert len(whole["text"]) == 96
    for index in (0, 1, 50, 95):
        assert_same({k: v[index] for k, v in whole.items()}, stream[index])


@pytest.mark.parametrize("batch_size", [4, 12, 32])
def test_the_batch_size_changes_no_sample(stream, whole, batch_size):
    assert_same(joined(batches(stream, batch_size, 0, 96, host=0, hosts=1)), whole)


@pytest.mark.parametrize("hosts", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_hosts(stream, whole, hosts):
    parts = [list(batches(stream, 8, 0, 96, host=h, hosts=hosts)) for h in range(hosts)]
    together = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined(iter(together)), whole)


@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(0, 6), st.integers(1, 6), st.integers(0, 39)
)
def test_host_views_cover_each_batch_once(part, hosts, first, count, rest):
    batch, start = part * hosts, first * part * hosts
    stop = start + count * batch + rest % batch
    views = [HostView(range(10_000), batch, start, stop, host, hosts) for host in range(hosts)]
    seen = [view[k * part + i] for k in range(count) for view in views for i in range(part)]
    assert seen == list(range(start, start + count * batch))
    assert {len(view) for view in views} == {count * part}


@pytest.mark.parametrize("start", [0, 8, 40, 88])
@pytest.mark.parametrize("threads", [1, 4])
def test_restart_anywhere(stream, whole, start, threads):
    rest = joined(batches(stream, 8, start, 96, threads=threads, host=0, hosts=1))
    assert_same(rest, {name: array[start:] for name, array in whole.items()})


@pytest.mark.slow
@pytest.mark.parametrize(("start", "workers"), [(0, 2), (40, 2), (40, 1)])
def test_worker_processes_change_nothing(stream, whole, start, workers):
    rest = joined(batches(stream, 8, start, 96, workers=workers, host=0, hosts=1))
    assert_same(rest, {name: array[start:] for name, array in whole.items()})


def test_the_end():
    stream = make_stream()
    assert list(batches(stream, 8, 96, 96, host=0, hosts=1)) == []
    with pytest.raises(UserError, match="does not divide over 3 hosts"):
        batches(stream, 8, 0, 96, host=0, hosts=3)


# What is drawn


def test_each_epoch_is_a_permutation_of_its_own():
    ids = np.array([make_stream()[i]["sample_id"] for i in range(150)]).reshape(3, 50)
    for epoch in ids:
        assert sorted(epoch) == list(range(50))
    assert not np.array_equal(ids[0], ids[1])
    assert not np.array_equal(ids[0], np.arange(50))


def test_the_same_record_looks_another_way_each_time():
    stream = make_stream({"noise": noise(1)})
    views = {stream[i]["image"].tobytes() for i in range(5)}
    assert len(views) == 5


def test_sample_seeds_are_distinct(stream):
    assert len({int(stream[i]["sample_seed"]) for i in range(300)}) == 300


def test_weights_are_shares():
    stream = make_stream(
        {"a": noise(40, weight=1.0), "b": noise(1000, weight=2.5), "c": noise(7, weight=0.5)}
    )
    ids = [int(stream[i]["sample_id"]) for i in range(400)]
    share = Counter(i >> SOURCE_BITS for i in ids)
    assert share == pytest.approx({0: 100, 1: 250, 2: 50}, abs=2)
    # Even at the small scale: a batch has each source's part, give or take one.
    for start in range(0, 400, 40):
        part = Counter(i >> SOURCE_BITS for i in ids[start : start + 40])
        assert part == pytest.approx({0: 10, 1: 25, 2: 5}, abs=2)
    # Within a source nothing comes twice before everything came once.
    first = [i & ((1 << SOURCE_BITS) - 1) for i in ids if i >> SOURCE_BITS == 0]
    assert sorted(first[:40]) == list(range(40))
    assert stream.epoch == 1047


def test_sources_with_the_same_records_are_shuffled_each_its_own_way():
    stream = make_stream({"a": noise(30), "b": noise(30)})
    ids = [int(stream[i]["sample_id"]) for i in range(60)]
    mask = (1 << SOURCE_BITS) - 1
    a, b = ([i & mask for i in ids if i >> SOURCE_BITS == s] for s in (0, 1))
    assert a != b
    assert sorted(a) == sorted(b)


# Records that cannot be used


def test_bad_records_are_replaced_and_counted():
    flawed = {"flawed": {"kind": "tests.tiny_parts:Flawed", "every": 2}}
    stream = make_stream(flawed, kind="name_and_keywords")
    samples = [stream[i] for i in range(60)]
    assert all(s["sample_id"] % 2 for s in samples)
    found = {}
    for sample in samples:
        for name, count in counted(sample).items():
            found[name] = found.get(name, 0) + count
    found.pop("cut")
    assert found.keys() == {
        "bad/image has zero bytes",
        "bad/image format not recognised",
        "bad/text is empty",
    }
    assert 10 < sum(found.values()) < 100
    again = make_stream(flawed, kind="name_and_keywords")
    for index in range(10):
        assert_same(again[index], samples[index])


def test_nothing_but_bad_records():
    stream = make_stream(
        {"flawed": {"kind": "tests.tiny_parts:Flawed", "every": 1}}, kind="name_and_keywords"
    )
    with pytest.raises(UserError, match="20 records of source 'flawed' cannot be used at place 3"):
        stream[3]
    with pytest.raises(UserError, match="20 records of source 'flawed' cannot be used at place 0"):
        list(batches(stream, 8, 0, 96, host=0, hosts=1))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 45))
def test_far_places_of_the_stream(place):
    """A run of 35 trillion samples would still be shuffled and mixed."""
    stream = make_stream({"a": noise(40, weight=1.0), "b": noise(1000, weight=2.5)})
    number, record = stream.order.draw(place, 0)
    assert number in (0, 1)
    assert 0 <= record < (40, 1000)[number]
    far = [stream.order.draw(place + i, 0) for i in range(35)]
    assert 8 <= sum(number == 0 for number, _ in far) <= 12


def test_mistakes():
    with pytest.raises(UserError, match="sources is empty"):
        make_stream({})
    with pytest.raises(UserError, match="weight must be above 0"):
        make_stream({"a": noise(3, weight=0)})
    with pytest.raises(UserError, match="The source 'a' has no records"):
        make_stream({"a": noise(0)})
