"""Two thousand damaged files in a mixture of all layouts: each loss has its reason, and nothing healthy is lost."""

import contextlib
import io
import json
import random
import tarfile
from collections import Counter

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from clipjax.cli import main
from clipjax.data.bad import REASONS
from clipjax.data.sources.array_record import write
from clipjax.data.stream import SOURCE_BITS
from clipjax.errors import UserError
from tests.data.test_stream import counted, make_stream

DAMAGED, HEALTHY = 2000, 2400
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def img(number):
    noise = np.random.default_rng(number).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((24 + number % 13, 20 + number % 7))


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(kind):
    """A small file that claims to be a huge image."""
    if kind == "PNG":
        data = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
        data[16:24] = (60_000).to_bytes(4, "big") * 2
        return bytes(data)
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    return bytes(data)


def damage(rng, number):
    """(name of what was done, bytes of an image)."""
    kind = rng.choice(KINDS)
    data = bytearray(encoded(img(number), kind))
    how = rng.choice(("flip", "truncate", "noise", "empty", "bomb", "ending", "splice"))
    if how == "flip":
        for _ in range(rng.randrange(1, 40)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "truncate":
        data = data[: rng.randrange(1, len(data))]
    elif how == "noise":
        data = bytearray(rng.randbytes(rng.randrange(1, 2000)))
    elif how == "empty":
        data = bytearray()
    elif how == "bomb":
        data = bytearray(bomb(rng.choice(("PNG", "JPEG"))))
    elif how == "ending":
        data = bytearray(
            rng.choice((b"GIF89a", b"%PDF-1.7\n", b"<svg/>", b"\x00\x00\x00\x18ftypavif", b"RIFF"))
        )
    else:
        place = rng.randrange(len(data))
        data[place:place] = rng.randbytes(rng.randrange(1, 300))
    return how, bytes(data)


HOSTILE = ("../../{}", "/{}", "a/../../../{}", "~/{}", "C:\\\\{}", "x\n{}", "{}" + "y" * 300)


def tars(folder, rng, healthy, broken):
    """Tars with hostile names, links and devices, broken json and texts; the ids that must be read."""
    with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number, good in order(rng, healthy, broken):
            name = f"{number:06d}"
            image, text, fields = (
                encoded(img(number), "JPEG"),
                f"number {number}".encode(),
                b"{}",
            )
            if not good:
                how = rng.randrange(4)
                name = rng.choice(HOSTILE).format(name)
                if how == 0:
                    _, image = damage(rng, number)
                elif how == 1:
                    text = rng.choice((b"", b" \n", b"\xff\xfe\x00", b"caf\xe9", b"\xed\xa0\x80"))
                elif how == 2:
                    fields = rng.choice((b"{", b"[1]", b'{"a": \xff}', b"[" * 5000, b"null"))
                else:
                    image = b""
            for ending, data in (("jpg", image), ("txt", text), ("json", fields)):
                add(tar, f"{name}.{ending}", data)
            if rng.random() < 0.05:
                link = tarfile.TarInfo(f"link{number}.jpg")
                link.type, link.linkname = (
                    rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)),
                    "/etc/passwd",
                )
                tar.addfile(link)
    assert main(["data", "index", str(folder / "a.tar")]) == 0
    return {"kind": "tars", "shards": str(folder / "a.tar")}


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def records(folder, rng, healthy, broken):
    rows = []
    for number, good in order(rng, healthy, broken):
        row = {"image": encoded(img(number), "PNG"), "text": [f"number {number}"]}
        if not good:
            row |= rng.choice(
                (
                    {"image": damage(rng, number)[1]},
                    {"text": rng.choice(([], [""], None, [b"\xff"], 7, [["a"], {}]))},
                    {"image": None},
                    {"image": np.zeros((4, 4), np.float32)},
                    {"image": []},
                    {"image": "a string"},
                )
            )
        rows.append(row)
    write(rows, folder / "a.array_record")
    return {"kind": "array_record", "files": str(folder / "a.array_record")}


def parquet(folder, rng, healthy, broken):
    rows = []
    for number, good in order(rng, healthy, broken):
        image, text = encoded(img(number), "WEBP"), f"number {number}"
        if not good:
            image, text = rng.choice(
                ((damage(rng, number)[1], text), (None, text), (image, None), (image, "  "))
            )
        rows.append({"image": {"bytes": image, "path": None}, "text": text})
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=40)
    return {"kind": "parquet", "files": str(folder / "a.parquet"), "groups": 64}


def captions(folder, rng, healthy, broken):
    lines = []
    for number, good in order(rng, healthy, broken):
        line = json.dumps({"image": f"{number}.jpg", "text": f"number {number}"}).encode()
        data = encoded(img(number), "JPEG")
        if not good:
            how = rng.randrange(3)
            if how == 0:
                _, data = damage(rng, number)
            elif how == 1:
                line = rng.choice(
                    (
                        b"{",
                        b'{"image": 1, "text": "x"}',
                        b'{"image": "a.jpg", "text": "\xff"}',
                        b'{"image": "/dev/null", "text": "x"}',
                        b'{"image": "../../../../etc/shadow-", "text": "x"}',
                        b'{"image": ".", "text": "x"}',
                    )
                )
            else:
                line = line[: rng.randrange(1, len(line))]
        (folder / f"{number}.jpg").write_bytes(data)
        lines.append(line)
    (folder / "captions.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return {"kind": "captions", "file": str(folder / "captions.jsonl")}


def order(rng, healthy, broken):
    """(number, whether it is healthy), mixed; the first is healthy."""
    flags = [True] * (healthy - 1) + [False] * broken
    rng.shuffle(flags)
    return list(enumerate([True, *flags]))


def listing(folder):
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("seed", [0, 1])
def test_two_thousand_damaged_files(tmp_path, seed):
    part = tmp_path / "inside" / "deeper"
    part.mkdir(parents=True)
    entries, health = {}, []
    for number, make in enumerate((captions, parquet, records, tars)):
        args = HEALTHY // 8, DAMAGED // 8  # of each source; two seeds make 2,000
        entries[f"{number}"] = make(part, random.Random(100 * seed + number), *args)
        health.append(dict(order_of(make, random.Random(100 * seed + number), *args)))
    before = listing(tmp_path)
    stream = make_stream(entries)
    seen, lost = Counter(), Counter()
    for place in range(stream.epoch):
        source, record = stream.order.draw(place, 0)
        sample = stream[place]
        counts = counted(sample)
        counts.pop("cut", None)
        if health[source][record]:
            # No healthy record is lost.
            assert int(sample["sample_id"]) == (source << SOURCE_BITS) + record
            assert not counts
        if int(sample["sample_id"]) != (source << SOURCE_BITS) + record:
            assert counts  # each loss has its reason
        seen[source, record] += 1
        lost.update(counts)
    assert len(seen) == stream.epoch
    assert set(seen.values()) == {1}
    assert listing(tmp_path) == before
    reasons = {name.removeprefix("bad/") for name in lost}
    assert reasons <= set(REASONS[:-1])  # none is "other"
    assert len(reasons) >= 10, lost


def order_of(make, rng, healthy, broken):
    """The order that a maker used: it is the first thing it draws."""
    del make
    return order(rng, healthy, broken)


def test_damage_inside_of_the_containers(tmp_path):
    """Bits flipped anywhere in tars, ArrayRecords and Parquet: a sample, a reason, or one sentence at the start."""
    rng = random.Random(3)
    makers = {"a.tar": tars, "a.array_record": records, "a.parquet": parquet}
    outcomes = Counter()
    for name, make in makers.items():
        entry = make(tmp_path, random.Random(7), 60, 1)
        whole = (tmp_path / name).read_bytes()
        for _ in range(25):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 30)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            (tmp_path / name).write_bytes(data)
            outcomes[run(entry)] += 1
    assert outcomes["counted"] > 20, outcomes
    assert outcomes.keys() <= {"counted", "fine", "refused"}


def run(entry):
    total = Counter()
    with contextlib.suppress(UserError):
        stream = make_stream({"only": entry})
        for place in range(min(stream.epoch, 60)):
            total.update(counted(stream[place]))
        return "counted" if any(k.startswith("bad") for k in total) else "fine"
    return "refused"
