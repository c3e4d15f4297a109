"""webdataset's tars at random: the index, the source, and tars that somebody damaged."""

import io
import json
import pickle
import random
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipjax.cli import main
from clipjax.data.bad import BadRecord
from clipjax.data.images import decode
from clipjax.data.sources import files, make_source, tar_index
from clipjax.data.sources.files import Reader, braces, expand
from clipjax.data.sources.tars import Tars
from clipjax.errors import TryAgainError, UserError


def png(value, size=(6, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, (value % 256, 7, 9)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members, kind=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    """Three tars in img2dataset's layout, of 5, 1 and 4 samples; numbers in pixels, captions and metadata agree."""
    number = 0
    for shard, count in enumerate((5, 1, 4)):
        members = []
        for _ in range(count):
            meta = {"caption": f"number {number}", "similarity": number / 10, "language": "de"}
            members += [
                (f"{number:09d}.jpg", png(number)),
                (f"{number:09d}.txt", f"number {number}".encode()),
                (f"{number:09d}.json", json.dumps(meta).encode()),
            ]
            number += 1
        write_tar(tmp_path / f"{shard:05d}.tar", members)
    assert main(["data", "index", str(tmp_path / "*.tar")]) == 0
    return tmp_path


def test_every_sample_is_itself(shards):
    source = make_source(
        {"kind": "tars", "shards": str(shards / "{00000..00002}.tar"), "weight": 2.0}, "mine"
    )
    assert len(source) == 10
    order = random.Random(0).sample(range(10), 10)
    for i in order:
        record = source[i]
        assert decode(record["image"]).getpixel((0, 0)) == (i, 7, 9)
        assert record["text"] == [f"number {i}"]
        assert record["similarity"] == i / 10
        assert record["language"] == "de"
    for outside in (-1, 10):
        with pytest.raises(IndexError):
            source[outside]


def test_captions_of_several_places(shards):
    both = Tars(str(shards / "*.tar"), text=("txt", "caption"), image="jpg")
    assert both[3]["text"] == ["number 3", "number 3"]
    assert "similarity" in both[3]
    missing = Tars(str(shards / "*.tar"), image="png")
    with pytest.raises(BadRecord, match="there is no image"):
        missing[0]


def test_threads_and_copies_read_the_same(shards):
    source = pickle.loads(pickle.dumps(Tars(str(shards / "*.tar"))))
    with ThreadPoolExecutor(8) as pool:
        texts = [r["text"][0] for r in pool.map(source.__getitem__, list(range(10)) * 20)]
    assert texts == [f"number {i}" for i in range(10)] * 20


def test_what_webdataset_writes(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"file:{tmp_path}/w-%03d.tar", maxcount=3, verbose=0) as writer:
        for i in range(7):
            writer.write(
                {
                    "__key__": f"a/b{i}",
                    "png": np.full((4, 4, 3), i, np.uint8),
                    "txt": f"text {i}",
                    "json": {"n": i},
                }
            )
    assert main(["data", "index", f"{tmp_path}/w-*.tar"]) == 0
    source = Tars(f"{tmp_path}/w-*.tar")
    assert [r["n"] for r in map(source.__getitem__, range(7))] == list(range(7))
    assert [r["text"] for r in map(source.__getitem__, range(7))] == [
        [f"text {i}"] for i in range(7)
    ]
    assert decode(source[6]["image"]).getpixel((1, 1)) == (6, 6, 6)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_kind(tmp_path, kind):
    long = "d/" * 30 + "é" * (5 if kind == tarfile.USTAR_FORMAT else 120)
    members = [
        ("../../etc/passwd.png", png(1)),
        ("/abs/x.png", png(2)),
        (f"{long}.png", png(3)),
        ("a.b.c.PNG", png(4)),
        ("a.txt", b"text"),
        (".hidden", b"-"),
        ("README", b"-"),
    ]
    write_tar(tmp_path / "odd.tar", members, kind)
    with tarfile.open(tmp_path / "odd.tar", "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    index = tar_index.scan(str(tmp_path / "odd.tar"))
    assert sorted(p.name for p in tmp_path.rglob("*")) == before  # nothing is unpacked
    assert len(index) == 4
    assert index.fields(3).keys() == {"b.c.png", "txt"}
    assert index.remarks == {"not a plain file with an extension": 3}
    for number, sample in enumerate(range(3), 1):
        offset, size = index.fields(sample)["png"]
        data = Reader().read(str(tmp_path / "odd.tar"), offset, size)
        assert decode(data).getpixel((0, 0))[0] == number


def test_what_cannot_be_read_is_said(shards, capsys):
    tar = shards / "00000.tar"
    other = shards / "other.tar"
    other.write_bytes(tar.read_bytes())
    with pytest.raises(UserError, match=r"There is no index .*clipjax data index .*other\.tar"):
        Tars(str(other))
    (shards / "compressed.tar").write_bytes(b"\x1f\x8b" + bytes(100))
    (shards / "text.tar").write_text("this is no tar" * 100)
    capsys.readouterr()
    assert main(["data", "index", str(shards / "*.tar")]) == 1
    said = capsys.readouterr().out
    assert "compressed.tar is compressed, so nothing in it can be read at random" in said
    assert "text.tar is not a tar that can be read" in said
    assert "1 indexed: 5 samples of 15 files; 3 were indexed already; 2 cannot be read." in said
    with tar.open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(UserError, match="has changed since it was indexed"):
        Tars(str(tar))
    assert main(["data", "index", str(tar)]) == 0
    assert len(Tars(str(tar))) == 5
    with pytest.raises(UserError, match=r"There is no tar '.*nowhere"):
        Tars(str(shards / "nowhere-*.tar"))
    with pytest.raises(UserError, match="named more than once"):
        Tars([str(tar), str(shards / "0000?.tar")])
    assert main(["data", "index", str(shards / "nowhere.tar")]) == 2


def test_a_folder_of_indices(shards, tmp_path, capsys):
    folder = tmp_path / "indices"
    assert main(["data", "index", str(shards / "0000?.tar"), f"--output={folder}"]) == 0
    for file in shards.glob("*.tar.index"):
        file.unlink()
    assert len(Tars(str(shards / "*.tar"), index=str(folder))) == 10
    (shards / "sub").mkdir()
    (shards / "sub" / "00000.tar").write_bytes((shards / "00000.tar").read_bytes())
    capsys.readouterr()
    assert (
        main(
            [
                "data",
                "index",
                str(shards / "*.tar"),
                str(shards / "sub/*.tar"),
                f"--output={folder}",
            ]
        )
        == 2
    )
    assert "Several tars are called 00000.tar" in capsys.readouterr().err


def test_a_tar_that_was_cut_off(shards):
    tar = shards / "00002.tar"
    data = tar.read_bytes()
    whole = tar_index.scan(str(tar))
    for end in (len(data) - 11_000, 3000, 1500, 600):
        tar.write_bytes(data[:end])
        index = tar_index.scan(str(tar))
        assert sum(index.remarks.values()) <= 1
        for sample in range(len(index)):
            for field, place in index.fields(sample).items():
                assert whole.fields(sample)[field] == place
                assert sum(place) <= end


@given(st.data())
def test_damaged_indices_are_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    write_tar(folder / "a.tar", [("1.png", b"1"), ("2.png", b"22"), ("2.txt", b"t")])
    tar_index.write(tar_index.scan(str(folder / "a.tar")), folder / "a.tar.index")
    good = (folder / "a.tar.index").read_bytes()
    end = data.draw(st.integers(0, len(good) - 1))
    (folder / "a.tar.index").write_bytes(good[:end])
    with pytest.raises(UserError, match="make it again with: clipjax data index"):
        tar_index.read(str(folder / "a.tar.index"))


def test_patterns(tmp_path):
    assert list(braces("a{08..11}.tar")) == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert list(braces("{x,y}{1..2}")) == ["x1", "x2", "y1", "y2"]
    assert list(braces("plain")) == ["plain"]
    for name in ("b.tar", "a.tar"):
        (tmp_path / name).touch()
    assert [p[-5:] for p in expand(str(tmp_path / "*.tar"), "tar")] == ["a.tar", "b.tar"]
    assert [p[-5:] for p in expand([str(tmp_path / "b.tar"), str(tmp_path / "a.tar")], "tar")] == [
        "b.tar",
        "a.tar",
    ]


def test_remote_tars(shards):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        memory.pipe_file(f"/set/{path.name}", path.read_bytes())
    assert main(["data", "index", "memory://set/*.tar"]) == 0
    source = Tars("memory://set/*.tar")
    assert [source[i]["text"] for i in (9, 0)] == [["number 9"], ["number 0"]]


# Many tars, and slow ones


def memory_tars(count, samples=5):
    """Tars in fsspec's memory, indexed: a remote file system without a network."""
    system = fsspec.filesystem("memory")
    for shard in range(count):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for n in range(samples):
                for ending, data in (("jpg", jpeg(n)), ("txt", f"{shard} {n}".encode())):
                    member = tarfile.TarInfo(f"{n:04d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        system.pipe_file(f"/many/{shard:05d}.tar", file.getvalue())
    return system


def jpeg(number):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def memory():
    system = memory_tars(3)
    assert main(["data", "index", "memory://many/*.tar", "--list=memory://many/all.tars"]) == 0
    yield system
    system.rm("/many", recursive=True)


def test_a_list_of_tars(memory, tmp_path, capsys):
    listed = Tars("memory://many/all.tars")
    plain = Tars("memory://many/*.tar")
    assert len(listed) == len(plain) == 15
    assert [listed[i] for i in range(15)] == [plain[i] for i in range(15)]
    # It starts without opening any index, and so notices only later that one has changed.
    text = memory.cat_file("/many/all.tars").decode().replace("[5]", "[6]", 1)
    memory.pipe_file("/many/all.tars", text.encode())
    wrong = Tars("memory://many/all.tars")
    assert len(wrong) == 16
    with pytest.raises(UserError, match="has 5 samples, but the list of tars says 6"):
        wrong[0]
    memory.pipe_file("/many/all.tars", b"{}\n")
    with pytest.raises(UserError, match=r"Line 1 of memory://many/all\.tars is not a file with"):
        Tars("memory://many/all.tars")
    assert main(["data", "index", "memory://many/*.tar", "--list=all.txt"]) == 2
    assert "must end with .tars" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be read"):
        Tars(str(tmp_path / "none.tars"))


def test_a_list_is_relative_to_its_folder(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
        member = tarfile.TarInfo("1.jpg")
        member.size = len(jpeg(1))
        tar.addfile(member, io.BytesIO(jpeg(1)))
    monkeypatch.chdir(tmp_path)
    assert main(["data", "index", "in/a.tar", "--list=all.tars"]) == 0
    monkeypatch.chdir(tmp_path / "in")
    assert len(Tars(str(tmp_path / "all.tars"))) == 1
    assert len(Tars("../all.tars")) == 1


def test_a_hundred_thousand_tars_start_at_once(tmp_path):
    lines = [
        json.dumps({"file": f"gs://b/{n}.tar", "samples": [10_000], "bytes": 1})
        for n in range(100_000)
    ]
    (tmp_path / "web.tars").write_text("\n".join(lines) + "\n")

    def seconds(work):
        start = time.process_time()
        work()
        return time.process_time() - start

    def read():
        assert len(Tars(str(tmp_path / "web.tars"))) == 10**9

    # Beside what reading the list's lines takes on this machine, which may be slow and busy.
    pairs = [(seconds(read), seconds(lambda: [*map(json.loads, lines)])) for _ in range(3)]
    assert min(one / other for one, other in pairs) < 4


def test_reading_ahead_shares_requests(memory, monkeypatch):
    asked = []

    def request(path, offset, size):
        asked.append((path, offset))
        return real(path, offset, size)

    real = files.request
    monkeypatch.setattr(files, "request", request)
    plain = [Tars("memory://many/*.tar")[i] for i in range(15)]
    single = len(asked)
    asked.clear()
    source = Tars("memory://many/*.tar", read_ahead=0.004)
    assert [source[i] for i in range(15)] == plain
    assert single == 30
    assert len(asked) == len(set(asked)) < 15
    assert pickle.loads(pickle.dumps(source))[3] == plain[3]


def test_a_network_that_fails_is_tried_again_and_never_a_bad_record(memory, monkeypatch):
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0))
    source = Tars("memory://many/*.tar")
    wanted = source[0]
    real, failures = type(memory).cat_file, [OSError("reset"), TimeoutError("slow")]

    def flaky(self, path, *args, **kwargs):
        if failures and path.endswith(".tar"):
            raise failures.pop()
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(type(memory), "cat_file", flaky)
    assert source[0] == wanted
    assert not failures
    failures += [OSError("reset")] * 9
    with pytest.raises(TryAgainError, match=r"00000\.tar' cannot be read: reset"):
        source[0]
    failures[:] = [FileNotFoundError("gone")]
    with pytest.raises(UserError, match="cannot be read: gone"):
        source[0]
