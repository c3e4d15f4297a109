"""Where a record stands in the stream: permutations, windows, and a source of a billion records."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipjax.data.orders.records import Records
from clipjax.data.orders.shuffle import Shuffle, shuffle
from clipjax.errors import UserError


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(1, 80),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_every_record_once_an_epoch(length, block, window, seed, epoch):
    for windows in (None, [(block, window)]):
        order = Shuffle([length], [1.0], seed, windows)
        found = [order.draw(epoch * length + i, 0) for i in range(length)]
        assert sorted(found) == [(0, i) for i in range(length)]


def test_windows_stay_near():
    order = Shuffle([100_000], [1.0], 0, [(1000, 5000)])
    records = [order.draw(i, 0)[1] for i in range(5000)]
    blocks = {(r // 500) for r in records}
    assert len(blocks) <= 5 * 3  # five blocks of a thousand, wherever they begin
    assert records != sorted(records)
    later = [order.draw(100_000 + i, 0)[1] for i in range(5000)]
    assert {r // 500 for r in later} != blocks  # another epoch begins elsewhere


def test_a_second_run_goes_on_where_the_first_ended():
    records = Records("ab", [range(100), range(30)], [1.0, 2.0], [None, None], 5, 16)
    whole, rest = shuffle(records), shuffle(records, start=70)
    for place in range(200):
        for number in range(2):
            assert rest.draw(place, number) == whole.draw(70 + place, number)
    with pytest.raises(
        UserError, match=r"config\.data\.order\.start must be a whole number of at least 0"
    ):
        shuffle(records, start=-1)


def test_replacements_come_from_the_same_source():
    order = Shuffle([10, 1000], [1.0, 1.0], 0)
    for place in range(20):
        source, record = order.draw(place, 0)
        more = {order.draw(place, n) for n in range(1, 20)}
        assert {s for s, _ in more} == {source}
        assert order.draw(place, 0) == (source, record)


PROGRAM = """
import pickle, resource, time
from clipjax.data.orders.records import Records
from clipjax.data.orders.shuffle import Shuffle, shuffle
from clipjax.errors import UserError
from clipjax.data.pipeline import HostView

LENGTHS, WEIGHTS, BATCH, DONE = [10**9, 3 * 10**8, 10**12], [3.0, 1.0, 1.0], 32768, 12345


class Places(Shuffle):
    def __getitem__(self, place):
        return self.draw(place, 0)


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def batch(start):
    begin = time.perf_counter()
    view = HostView(Places(LENGTHS, WEIGHTS, 7), BATCH, start, 10**10, 5, 64)
    return [view[i] for i in range(BATCH // 64)], view, time.perf_counter() - begin


imported = memory()
first, view, begun = batch(0)
later, _, resumed = batch(DONE * BATCH)
assert later == [view[DONE * BATCH // 64 + i] for i in range(BATCH // 64)]
assert len(set(first + later)) == 2 * BATCH // 64
print(begun, resumed, memory() - imported, len(pickle.dumps(DONE * BATCH)))
"""


def test_a_billion_records():
    """Start and resume: under a second, under 200 MB beside what importing takes, and one number for a state."""
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    ).stdout
    begun, resumed, grown, state = map(float, output.split())
    assert begun < 1
    assert resumed < 1
    assert grown < 200
    assert state < 10_000


@pytest.mark.parametrize("place", [0, 10**9, 1 << 45])
def test_the_order_is_the_seeds(place):
    a, b, c = (Shuffle([1000, 50], [2.0, 1.0], seed) for seed in (1, 1, 2))
    assert [a.draw(place + i, 0) for i in range(30)] == [b.draw(place + i, 0) for i in range(30)]
    assert [a.draw(place + i, 0) for i in range(30)] != [c.draw(place + i, 0) for i in range(30)]
