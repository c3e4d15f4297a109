"""Arrays on disk, joined by sample_id."""

import pickle

import numpy as np
import pytest

from clipjax.data.features.stored import Stored, _Table
from clipjax.data.features.view import SOURCE_BITS
from clipjax.data.stream import COUNTERS, Stream
from clipjax.errors import UserError
from tests.data.test_features import config_of, said

SECOND = 1 << SOURCE_BITS
IDS = np.array([7, 3, SECOND + 2, 5, SECOND + 9], np.int64)
VALUES = np.arange(10, dtype=np.float16).reshape(5, 2)
SOURCES = ("a", "b")


def write(folder, how, ids=IDS, values=VALUES):
    """The files of one layout; the pattern that names them."""
    if how == "npy":
        np.save(folder / "v.npy", values)
        np.save(folder / "v.sample_id.npy", ids)
        return str(folder / "v.npy")
    if how == "parts":
        for part in range(2):
            np.savez(folder / f"{part}.npz", sample_id=ids[part::2], vector=values[part::2])
        return str(folder / "*.npz")
    save = np.savez_compressed if how == "compressed" else np.savez
    save(folder / "v.npz", sample_id=ids, vector=values)
    return str(folder / "v.npz")


@pytest.mark.parametrize("how", ["npz", "compressed", "npy", "parts"])
@pytest.mark.parametrize("order", [slice(None), np.argsort(IDS)])
def test_rows_by_id(tmp_path, how, order):
    stored = Stored(write(tmp_path, how, IDS[order], VALUES[order]), None, SOURCES)
    stored.open()
    assert stored.shape == (2,)
    again = pickle.loads(pickle.dumps(stored))
    assert len(pickle.dumps(stored)) < 2000
    for one in (stored, again):
        for sample_id, row in zip(IDS, VALUES, strict=True):
            np.testing.assert_array_equal(one.get(int(sample_id)), row)
        assert one.get(2) is None
        assert one.get(SECOND + 3) is None
    asked = np.array([3, 4, SECOND + 9, 7])
    values, found = stored.get_all(asked)
    assert found.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(values[found], VALUES[[1, 4, 0]])
    if how in ("npz", "npy"):
        table = stored._tables[None][0]
        assert isinstance(table.values, np.memmap)


def test_files_of_a_source_count_by_index_alone(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(6).reshape(3, 2))
    path = write(tmp_path, "npz")
    stored = Stored({"b": str(tmp_path / "rows.npy"), "a": path}, None, SOURCES)
    stored.open()
    np.testing.assert_array_equal(stored.get(SECOND + 2), [4, 5])
    assert stored.get(SECOND + 3) is None
    np.testing.assert_array_equal(stored.get(7), VALUES[0])
    _, found = stored.get_all(np.array([2, SECOND, 7]))
    assert found.tolist() == [False, True, True]
    assert "has no ids, since there is no file 'rows.sample_id.npy'" in said(
        lambda: Stored(str(tmp_path / "rows.npy"), None, SOURCES).open()
    )


def test_vectors_and_labels_of_a_run(tmp_path):
    """Only half of the records have a row: the others are replaced and counted."""
    ids = np.arange(0, 50, 2)
    np.savez(tmp_path / "v.npz", sample_id=ids, vector=np.stack([ids, -ids], axis=1) / 4)
    np.savez(tmp_path / "l.npz", sample_id=ids, label=np.stack([ids, ids + 1, ids], axis=1))
    features = {
        "vector": {"kind": "vectors", "shape": (2,), "files": str(tmp_path / "v.npz")},
        "labels": {"kind": "labels", "count": 2, "files": {"noise": str(tmp_path / "l.npz")}},
    }
    stream = Stream(config_of(features))
    missing = COUNTERS.index("bad/the sample id is not in the stored arrays")
    counted = 0
    for place in range(30):
        sample = stream[place]
        index = int(sample["sample_id"])
        assert index % 2 == 0
        np.testing.assert_array_equal(sample["vector"], np.float32([index, -index]) / 4)
        assert sample["labels"].tolist() == [index, index + 1]
        assert sample["vector"].dtype == np.float32
        counted += sample["counts"][missing]
    assert counted > 10


def test_the_same_file_serves_sources_under_another_number(tmp_path):
    np.savez(tmp_path / "l.npz", sample_id=np.arange(50), label=np.arange(50) + 100)
    noise = {"kind": "synthetic", "size": 12, "length": 50}
    files = dict.fromkeys(("noise", "a_new_one"), str(tmp_path / "l.npz"))
    config = config_of(
        {"labels": {"kind": "labels", "files": files}}, {"noise": noise, "a_new_one": noise}
    )
    for place in range(6):
        sample = Stream(config)[place]
        index = int(sample["sample_id"]) & SECOND - 1
        assert sample["labels"].tolist() == [index + 100]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vector": VALUES}, "must hold 'sample_id' and one array beside it, but it holds vector"),
        ({"sample_id": IDS}, "one array beside it, but it holds sample_id"),
        ({"sample_id": IDS, "a": VALUES, "b": VALUES}, "(choose one with `array`)"),
        ({"sample_id": IDS[:3], "a": VALUES}, "has 5 rows for 3 ids"),
        ({"sample_id": IDS / 2, "a": VALUES}, "must be whole numbers [N]"),
        ({"sample_id": IDS[[0, 0, 1, 2, 3]], "a": VALUES}, "has a sample_id twice"),
        ({"sample_id": IDS, "a": np.array(["x"] * 5, object)}, "cannot be read"),
    ],
)
def test_files_that_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "v.npz", **arrays)
    assert message in said(Stored(str(tmp_path / "v.npz"), None, SOURCES).open)


def test_more_that_is_refused(tmp_path):
    (tmp_path / "v.npz").write_bytes(b"PK torn")
    (tmp_path / "v.txt").write_bytes(b"")
    assert "cannot be read" in said(Stored(str(tmp_path / "v.npz"), None, SOURCES).open)
    assert "must end in .npz or .npy" in said(Stored(str(tmp_path / "v.txt"), None, SOURCES).open)
    np.savez(tmp_path / "w.npz", sample_id=IDS, a=VALUES)
    asked = Stored(str(tmp_path / "w.npz"), "b", SOURCES)
    assert "'sample_id' and 'b', but it holds sample_id, a" in said(asked.open)
    np.savez(tmp_path / "x.npz", sample_id=IDS, a=VALUES[:, :1])
    assert "have the shape [1], those of" in said(
        Stored([str(tmp_path / n) for n in ("w.npz", "x.npz")], None, SOURCES).open
    )
    vectors = {"kind": "vectors", "shape": (3,), "files": str(tmp_path / "w.npz")}
    assert "has rows of float16 [2], but config.data.features.v.shape declares [3]" in said(
        lambda: Stream(config_of({"v": vectors}))
    )
    labels = {"kind": "labels", "files": str(tmp_path / "w.npz")}
    assert "must hold whole numbers [N] or [N,l], not float16" in said(
        lambda: Stream(config_of({"labels": labels}))
    )
    with pytest.raises(UserError, match="is remote"):
        _Table("gs://bucket/a.npz", None, None, "files")
