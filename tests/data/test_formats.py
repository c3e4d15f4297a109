"""Data sets that others wrote, read back: ArrayRecord, Parquet, TFDS; and rows of every shape."""

import contextlib
import io
import pickle

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipjax.cli import main
from clipjax.data.bad import BadRecord
from clipjax.data.images import decode
from clipjax.data.sources import files, make_source, rows
from clipjax.data.sources.array_record import ArrayRecords, write
from clipjax.data.sources.array_record import decode as unpack
from clipjax.data.sources.array_record import encode as pack
from clipjax.errors import TryAgainError, UserError


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 1, 2)).save(file, "PNG")
    return file.getvalue()


def test_rows():
    several = rows.record({"jpg": b"1", "alt": "a", "fused": ["b", "c"]}, text=("alt", "fused"))
    assert several == {
        **{"image": b"1", "language": "en", "text": ["a", "b", "c"]},
        **{"alt": "a", "fused": ["b", "c"]},  # for a policy that tells them apart
    }
    found = rows.record({"jpg": b"1", "txt": b"caf\xc3\xa9", "score": 3})
    assert found == {"image": b"1", "text": ["café"], "language": "en", "score": 3}
    found = rows.record(
        {"image": {"bytes": b"2", "path": "x"}, "caption": ["a", "b"], "lang": "fr"}
    )
    assert found == {"image": b"2", "text": ["a", "b"], "language": "fr"}
    found = rows.record(
        {"pic": b"3", "alt": "a", "long": ["b", None], "tag": "it"}, "pic", ("alt", "long"), "tag"
    )
    several = {"alt": "a", "long": ["b", None]}
    assert found == {"image": b"3", "text": ["a", "b"], "language": "it", **several}
    assert rows.record({"image": b"", "text": np.array(["a", "b"])})["text"] == ["a", "b"]
    assert rows.record({"image": b""})["text"] == []
    for row, reason in (
        ({"text": "a"}, "there is no image"),
        ({"image": {"bytes": None, "path": "x"}}, "there is no image"),
        ({"image": b"", "text": b"\xff"}, "text is not UTF-8"),
        ({"image": b"", "text": 5}, "text is neither a string nor a list"),
    ):
        with pytest.raises(BadRecord, match=reason):
            rows.record(row)


def test_array_records(tmp_path):
    records = [
        {
            "image": png(i),
            "text": [f"text {i}", "é"],
            "boxes": np.array([[0, 0.5, 1, 1]], np.float32),
            "n": i,
        }
        for i in range(7)
    ]
    assert write(records[:4], tmp_path / "a.arrayrecord") == 4
    assert write(records[4:], tmp_path / "b.arrayrecord") == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.arrayrecord", "b.arrayrecord"]
    source = make_source({"kind": "array_record", "files": str(tmp_path / "*.arrayrecord")}, "mine")
    assert len(source) == 7
    for i in (6, 0, 3, 4):
        record = pickle.loads(pickle.dumps(source))[i]
        assert (record["text"], record["n"]) == ([f"text {i}", "é"], i)
        assert decode(record["image"]).getpixel((0, 0)) == (i, 1, 2)
        np.testing.assert_array_equal(record["boxes"], records[i]["boxes"])
        assert record["boxes"].dtype == np.float32
    (tmp_path / "c.arrayrecord").write_bytes(b"something else" * 100)
    with pytest.raises(UserError, match="cannot be read as ArrayRecord"):
        ArrayRecords(str(tmp_path / "c.arrayrecord"))
    with pytest.raises(UserError, match="A record cannot be written: a object"):
        pack({"x": object()})
    assert not list(tmp_path.glob("*.part"))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, max_size=5))
def test_records_come_back(record):
    assert unpack(pack(record)) == record


@given(st.binary(max_size=60))
def test_other_bytes_are_bad_records(data):
    with contextlib.suppress(BadRecord):
        assert isinstance(unpack(data), dict)


@pytest.fixture
def parquet():
    return pytest.importorskip("pyarrow.parquet")


def test_parquet(parquet, tmp_path):
    import pyarrow

    table = pyarrow.table(
        {
            "image": pyarrow.array([{"bytes": png(i), "path": f"{i}.png"} for i in range(25)]),
            "caption": [f"text {i}" for i in range(25)],
            "score": [i / 2 for i in range(25)],
        }
    )
    parquet.write_table(table.slice(0, 13), tmp_path / "a.parquet", row_group_size=4)
    parquet.write_table(table.slice(13), tmp_path / "b.parquet", row_group_size=5)
    source = make_source(
        {"kind": "parquet", "files": str(tmp_path / "*.parquet"), "groups": 2}, "mine"
    )
    assert len(source) == 25
    copy = pickle.loads(pickle.dumps(source))
    for i in np.random.default_rng(0).permutation(25).tolist():
        record = copy[i]
        assert (record["text"], record["score"]) == ([f"text {i}"], i / 2)
        assert decode(record["image"]).getpixel((0, 0)) == (i, 1, 2)
    with pytest.raises(IndexError):
        source[25]
    with pytest.raises(
        UserError, match="has no column 'captoin'; its columns are image, caption, score"
    ):
        make_source(
            {"kind": "parquet", "files": str(tmp_path / "a.parquet"), "text": "captoin"}, "mine"
        )
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        make_source({"kind": "parquet", "files": str(tmp_path / "c.parquet")}, "mine")


def test_what_datasets_writes(parquet, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Sequence(datasets.Value("string"))}
    )
    made = {
        "image": [Image.new("RGB", (3, 3), (i, 0, 0)) for i in range(4)],
        "text": [[f"{i}", "x"] for i in range(4)],
    }
    datasets.Dataset.from_dict(made, features=features).to_parquet(tmp_path / "hf.parquet")
    source = make_source({"kind": "parquet", "files": str(tmp_path / "hf.parquet")}, "mine")
    assert source[2]["text"] == ["2", "x"]
    assert decode(source[2]["image"]).getpixel((0, 0)) == (2, 0, 0)


def test_tfds(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class Pairs(tfds.core.GeneratorBasedBuilder):
        """Pairs."""

        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path
        __module__ = "pairs"  # of a package TFDS would want to know the files

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(5):
                yield (
                    i,
                    {
                        "image": io.BytesIO(png(i)),
                        "captions": [{"text": f"text {i}"}, {"text": "x"}],
                    },
                )

    builder = Pairs(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    settings = {"kind": "tfds", "name": "pairs", "data_dir": str(tmp_path), "text": "captions/text"}
    source = make_source(settings, "mine")
    assert len(source) == 5
    found = {record["text"][0]: record for record in map(source.__getitem__, range(5))}
    assert found.keys() == {f"text {i}" for i in range(5)}
    assert decode(found["text 3"]["image"]).getpixel((0, 0)) == (3, 1, 2)
    assert found["text 3"]["text"] == ["text 3", "x"]
    with pytest.raises(UserError, match="The data set 'nothing', split 'train', cannot be read"):
        make_source(settings | {"name": "nothing"}, "mine")

    (file,) = tmp_path.rglob("*.array_record*")
    data = bytearray(file.read_bytes())
    data[data.index(b"text 3")] ^= 1  # its checksum no longer holds
    file.write_bytes(data)
    outcomes = []
    for index in range(5):
        try:
            make_source(settings, "mine")[index]
        except BadRecord as error:
            outcomes.append(str(error))
    assert outcomes == ["file is damaged here"]


def test_a_list_of_parquet_files(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for number in range(3):
        pairs = [{"image": png(10 * number + i), "text": f"{number} {i}"} for i in range(7)]
        table = pyarrow.Table.from_pylist(pairs)
        path = tmp_path / "in" / f"{number}.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=3)
    pattern, listing = str(tmp_path / "in" / "*.parquet"), str(tmp_path / "all.parquets")
    assert main(["data", "index", pattern]) == 2
    assert "--list=FILE.parquets" in capsys.readouterr().err
    assert main(["data", "index", pattern, f"--list={listing}"]) == 0
    assert "3 files, 21 samples" in capsys.readouterr().out
    plain, listed = (make_source({"kind": "parquet", "files": f}, "p") for f in (pattern, listing))
    assert [listed[i] for i in range(21)] == [plain[i] for i in range(21)]
    # Files are opened when they are read.
    (tmp_path / "in" / "2.parquet").unlink()
    still = make_source({"kind": "parquet", "files": listing}, "p")
    assert still[0] == plain[0]
    with pytest.raises(UserError, match=r"2\.parquet cannot be read as Parquet"):
        still[20]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pairs), tmp_path / "in" / "1.parquet")
    with pytest.raises(UserError, match=r"1\.parquet has changed since it was listed"):
        still[7]


def test_remote_parquet_that_fails_is_no_bad_record(monkeypatch):
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0))
    system = fsspec.filesystem("memory")
    table = pyarrow.Table.from_pylist([{"image": png(i), "text": str(i)} for i in range(9)])
    with system.open("/remote/a.parquet", "wb") as file:
        pyarrow.parquet.write_table(table, file, row_group_size=3)
    source = make_source(
        {"kind": "parquet", "files": "memory://remote/*.parquet", "groups": 1}, "p"
    )
    assert source[4]["text"] == ["4"]
    failures = [OSError("reset"), OSError("slow")]
    real = pyarrow.parquet.ParquetFile.read_row_group

    def flaky(self, *args, **kwargs):
        if failures:
            raise failures.pop()
        return real(self, *args, **kwargs)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", flaky)
    assert source[8]["text"] == ["8"]
    assert not failures
    failures += [OSError("reset")] * 9
    with pytest.raises(TryAgainError, match=r"a\.parquet' cannot be read: reset"):
        source[0]
    failures[:] = [pyarrow.ArrowInvalid("page is broken")]
    with pytest.raises(BadRecord, match="file is damaged here"):
        source[0]
    assert not failures
    system.rm("/remote", recursive=True)
