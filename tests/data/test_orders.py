"""Orders beside the shuffle: batches of labels, of groups, and pairs."""

import pickle
from collections import Counter

import numpy as np
import pytest

from clipjax.data.features.view import SOURCE_BITS
from clipjax.data.orders import make_order
from clipjax.data.orders.records import Records
from clipjax.data.pipeline import batches
from clipjax.data.stream import Stream
from tests.data.test_features import NUMBERED, OWN, config_of, said

SECOND = 1 << SOURCE_BITS


def records(*lengths, batch_size=8, seed=0, weights=None, windows=None):
    """Sources of records that say their number as `group` (modulo 4) and as `kind` (modulo 3)."""

    class Source:
        def __init__(self, length):
            self.length = length

        def __len__(self):
            return self.length

        def __getitem__(self, index):
            return {"group": index % 4, "kind": "abc"[index % 3], "few": [index // 30, -1]}

    names = [f"s{n}" for n in range(len(lengths))]
    sources = [Source(n) for n in lengths]
    weights = weights or [1.0] * len(lengths)
    return Records(names, sources, weights, windows or [None] * len(lengths), seed, batch_size)


def order_of(data, **settings):
    return make_order(settings, data)


def batch(order, number, size=8):
    return [order.draw(number * size + place, 0) for place in range(size)]


@pytest.mark.parametrize("kind", ["group", "kind"])
def test_classes(kind):
    order = order_of(records(32, 16), kind="classes", per_label=4, column=kind)
    labels = 4 if kind == "group" else 3
    seen = Counter()
    for number in range(60):
        found = batch(order, number)
        of = [index % labels for _, index in found]
        assert of[:4] == [of[0]] * 4
        assert of[4:] == [of[4]] * 4
        assert of[0] != of[4]
        assert len(set(found)) == 8
        seen.update(found)
    if kind == "group":  # every record once before any comes again
        assert set(seen.values()) == {10}
    assert len(seen) == 48
    for place in (0, 5, 77):
        source, index = order.draw(place, 0)
        again = {order.draw(place, n) for n in range(1, 30)}
        assert {i % labels for _, i in again} == {index % labels}
        assert len(again) > 3
        assert (source, index) == pickle.loads(pickle.dumps(order)).draw(place, 0)


def test_small_classes_repeat():
    order = order_of(records(34), kind="classes", per_label=4, column="few", array=None)
    small = [b for n in range(10) for b in (batch(order, n)[:4], batch(order, n)[4:])]
    assert any(len(set(b)) == 4 and b[0][1] >= 30 for b in small)
    order = order_of(records(32), kind="classes", per_label=4, column="few")
    small = [b for n in range(10) for b in (batch(order, n)[:4], batch(order, n)[4:])]
    assert {len(set(b)) for b in small if b[0][1] >= 30} == {2}


@pytest.mark.parametrize(("groups", "share"), [(1, 8), (2, 4)])
def test_clusters(groups, share):
    order = order_of(records(70, 30), kind="clusters", groups=groups, column="group")
    epochs = 3 * (4 * (25 // share) // groups)
    seen = Counter()
    for number in range(epochs):
        found = batch(order, number)
        for part in range(groups):
            assert len({i % 4 for _, i in found[part * share : (part + 1) * share]}) == 1
        seen.update(found)
    assert max(seen.values()) <= 4
    assert len(seen) > 95
    other = order_of(records(70, 30, seed=1), kind="clusters", groups=groups, column="group")
    assert batch(order, 0) != batch(other, 0)


def test_stored_groups(tmp_path):
    ids = np.array([5, 1, SECOND + 3, 8, SECOND, 2, 4])
    np.savez(tmp_path / "g.npz", sample_id=ids, cluster=[1, 1, 1, 1, 0, 0, -1])
    order = order_of(records(10, 4, batch_size=2), kind="clusters", files=str(tmp_path / "g.npz"))
    sides = {(0, 5): 1, (0, 1): 1, (1, 3): 1, (0, 8): 1, (1, 0): 0, (0, 2): 0}
    seen = {tuple(batch(order, n, 2)) for n in range(30)}
    assert {pair for one in seen for pair in one} == sides.keys()
    assert all(sides[a] == sides[b] and a != b for a, b in seen)


def test_pairs_of_a_label():
    order = order_of(records(40, 8, weights=[1.0, 3.0]), kind="pairs", column="group")
    firsts = []
    for place in range(0, 400, 2):
        (a, i), (b, j) = order.draw(place, 0), order.draw(place + 1, 0)
        assert i % 4 == j % 4
        assert (a, i) != (b, j)
        firsts.append(a)
        assert order.draw(place + 1, 3)[1] % 4 == j % 4
    assert firsts.count(1) == pytest.approx(150, abs=2)
    assert len({order.draw(2 * n, 0) for n in range(10)}) == 10


def test_pairs_of_stored_partners(tmp_path):
    ids = np.array([0, 3, SECOND + 1])
    partners = np.array([[3, 7], [0, -1], [9, 2]])
    np.savez(tmp_path / "p.npz", sample_id=ids, partner=partners)
    file = str(tmp_path / "p.npz")
    order = order_of(records(10, 2), kind="pairs", partners=file)
    allowed = {(0, 0): {(0, 3), (0, 7)}, (0, 3): {(0, 0)}, (1, 1): {(0, 9), (0, 2)}}
    seen = {key: set() for key in allowed}
    for place in range(0, 100, 2):
        seen[order.draw(place, 0)].add(order.draw(place + 1, 0))
    assert seen == allowed
    np.savez(tmp_path / "p.npz", sample_id=ids, partner=partners + 100)
    assert "names the sample_id 103, which" in said(
        lambda: order_of(records(10, 2), kind="pairs", partners=file)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "classes", "per_label": 3, "column": "group"}, "must divide the batch size 8"),
        (
            {"kind": "classes", "per_label": 1, "column": "kind"},
            "has 8 labels, but the data has only",
        ),
        (
            {"kind": "classes", "column": "group"},
            "The order 'classes' needs the setting(s) per_label",
        ),
        (
            {"kind": "classes", "per_label": 4},
            "set config.data.order.column or config.data.order.f",
        ),
        (
            {"kind": "classes", "per_label": 4, "column": "no"},
            "none of 40 records has a column 'no'",
        ),
        ({"kind": "clusters", "column": "few"}, "1 of 2 groups of config.data.order have fewer"),
        ({"kind": "clusters", "groups": 3, "column": "group"}, "groups must divide the batch size"),
        ({"kind": "pairs", "column": "group", "partners": "x"}, "has partners and labels"),
        ({"kind": "pairs", "colum": "group"}, "no setting 'colum' (did you mean 'column'"),
        ({"kind": "shuffel"}, "no order named 'shuffel' (did you mean 'shuffle'"),
        ({}, "config.data.order needs a 'kind'"),
    ],
)
def test_mistakes(settings, message):
    data = records(36 if settings.get("column") == "few" else 40)
    assert message in said(lambda: make_order(settings, data))


def test_an_order_that_does_not_mix_refuses_weights():
    weighted = records(40, 40, weights=[1.0, 2.0])
    settings = {"kind": "clusters", "column": "group"}
    assert "The source 's1' has the weight 2.0, which config.data.order.kind = 'clusters'" in said(
        lambda: make_order(settings, weighted)
    )
    near = records(40, windows=[(4, 8)])
    assert "has a window" in said(lambda: make_order(settings, near))
    odd = records(40, batch_size=7)
    assert "even batch_size, not 7" in said(
        lambda: make_order({"kind": "pairs", "column": "group"}, odd)
    )


def test_in_a_run():
    """On any number of hosts and from any place the same; records that cannot be used stay in their group."""
    config = config_of(
        {"hard": {"kind": "tokens"}},
        NUMBERED,
        ("image", "text"),
        order={"kind": "classes", "per_label": 2, "column": "group"},
    )
    stream = Stream(config)
    whole = np.concatenate([b["sample_id"] for b in batches(stream, 8, 0, 64)])
    for number in range(8):
        groups = whole[8 * number : 8 * number + 8] % 4
        assert (groups[::2] == groups[1::2]).all()
        assert len(set(groups)) == 4
    assert (whole % 3 > 0).all()
    parts = [list(batches(stream, 8, 0, 64, host=h, hosts=2)) for h in range(2)]
    together = [x["sample_id"] for step in zip(*parts, strict=True) for x in step]
    np.testing.assert_array_equal(np.concatenate(together), whole)
    rest = np.concatenate([b["sample_id"] for b in batches(stream, 8, 40, 64)])
    np.testing.assert_array_equal(rest, whole[40:])


def test_orders_of_ones_own():
    features = {"score": {"kind": "column"}}
    own = {"kind": f"{OWN}Reversed", "step": 2}
    stream = Stream(config_of(features, NUMBERED, ("image", "text"), order=own))
    assert [int(stream[n]["sample_id"]) for n in range(3)] == [19, 17, 15]
    for how, message in (
        ("far", "gives record 1000000000 of source 0"),
        ("none", "fails at place"),
    ):
        lost = {"kind": f"{OWN}Lost", "how": how}
        stream = Stream(config_of(features, NUMBERED, ("image", "text"), order=lost))
        words = said(lambda s=stream: s[0])
        assert words.startswith(f"The order {OWN}Lost ")
        assert message in words
    typo = config_of(features, NUMBERED, ("image", "text"), order=own | {"stp": 1})
    assert "has no setting 'stp' (did you mean 'step'" in said(lambda: Stream(typo))
