"""What processes agree on, with processes that are only simulated; tests/test_distributed.py has real ones."""

import itertools
import math
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from clipjax.errors import SharedError, UserError
from clipjax.job import agreement
from clipjax.job.agreement import Share, Tally, batch_share, check_same
from clipjax.mesh import AXES, make_mesh


class Device:
    """What a mesh and a sharding ask of a device, and the process that it belongs to."""

    def __init__(self, number, process):
        self.id, self.process_index = number, process
        self.platform = self.device_kind = "simulated"
        self.client = SimpleNamespace(process_index=jax.process_index, platform="simulated")


def shares(monkeypatch, sizes, processes, batch):
    """The share of each process, device by device: `processes[i]` is that of device i."""
    mesh = make_mesh(sizes, [Device(i, p) for i, p in enumerate(processes)])
    found = []
    for process in sorted(set(processes)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(batch_share(mesh, batch))
    return found


def held(sizes, processes, batch):
    """process -> the rows of the batch that its devices hold, from the order of the mesh's axes alone."""
    copies = sizes["tensor"] * sizes["expert"]
    rows = batch // (sizes["data"] * sizes["fsdp"])
    found = {}
    for device, process in enumerate(processes):
        block = device // copies
        found.setdefault(process, set()).update(range(block * rows, (block + 1) * rows))
    return found


def check_partition(found, rows, batch):
    """Each part is read by those who hold its rows, all of them the same, and counted once."""
    parts = {share.parts for share in found}
    assert len(parts) == 1
    (number,) = parts
    by_part = {}
    for process, share in enumerate(found):
        by_part.setdefault(share.part, []).append(process)
    assert sorted(by_part) == list(range(number))
    seen = []
    for part in range(number):
        members = by_part[part]
        assert all(rows[p] == rows[members[0]] for p in members)
        assert len(rows[members[0]]) == batch // number
        assert [found[p].counts for p in members].count(True) == 1
        seen += rows[members[0]]
    assert sorted(seen) == list(range(batch))


MESHES = [
    sizes
    for count in (8, 12)
    for sizes in itertools.product((1, 2, 3, 4, 6, 8, 12), repeat=len(AXES))
    if math.prod(sizes) == count
]


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 8, 12])
def test_parts_partition_the_batch_on_every_mesh(devices, monkeypatch):
    """For `devices` a process. Where its devices cut through rows that others hold too, it is refused."""
    accepted, refused = 0, 0
    for shape in MESHES:
        sizes = dict(zip(AXES, shape, strict=True))
        processes = [i // devices for i in range(math.prod(shape))]
        if len(processes) % devices:
            continue
        batch = 3 * sizes["data"] * sizes["fsdp"]
        copies = sizes["tensor"] * sizes["expert"]
        if copies % devices == 0 or devices % copies == 0:
            found = shares(monkeypatch, sizes, processes, batch)
            check_partition(found, held(sizes, processes, batch), batch)
            accepted += 1
        else:
            with pytest.raises(UserError, match="spreads the batch unevenly over"):
                shares(monkeypatch, sizes, processes, batch)
            refused += 1
    assert accepted
    assert refused or devices not in (3, 4, 6)


def test_devices_that_are_not_in_the_order_of_their_processes(monkeypatch):
    """As on a TPU, whose hosts hold squares of chips."""
    sizes, processes = {"data": 4, "fsdp": 2, "tensor": 1, "expert": 1}, [0, 0, 1, 1, 0, 0, 1, 1]
    found = shares(monkeypatch, sizes, processes, 16)
    assert found == [Share(0, 2, True), Share(1, 2, True)]
    check_partition(found, held(sizes, processes, 16), 16)


def test_processes_that_hold_the_same_rows_read_the_same(monkeypatch):
    found = shares(monkeypatch, {"data": 2, "tensor": 4}, [0, 0, 1, 1, 2, 2, 3, 3], 6)
    assert found == [Share(0, 2, True), Share(0, 2, False), Share(1, 2, True), Share(1, 2, False)]


@pytest.mark.parametrize(
    ("sizes", "processes", "words"),
    [
        (
            {"data": 2, "tensor": 6},
            [i // 4 for i in range(12)],
            r"over 3 processes; let tensor \* expert divide the 4 devices of a process, or be a multiple of them",
        ),
        ({"data": 8}, [0, 0, 0, 1, 1, 1, 1, 1], "unevenly over 2 processes"),
    ],
)
def test_uneven_spreads_are_refused_in_one_sentence(sizes, processes, words, monkeypatch):
    with pytest.raises(UserError, match=words) as raised:
        shares(monkeypatch, sizes, processes, 24)
    assert str(raised.value).startswith("config.mesh spreads the batch unevenly over")


def step(bad, cut):
    return {"counts": np.array([bad, cut]).T}


STEPS = [step([0, 1, 0, 1], [0, 0, 0, 1]), step([0, 0, 0, 0], [1, 1, 1, 1])]


@pytest.mark.parametrize("several", [False, True])
def test_a_tally_adds_up(several, monkeypatch):
    """Alone by plain addition; with `several`, by the program that adds over the devices of a job."""
    if several:
        monkeypatch.setattr(jax, "process_count", lambda: 2)
    tally = Tally(make_mesh(), Share(0, 1, True), {"bad": 5, "cut": 7})
    monkeypatch.undo()
    sent = [tally.send(batch, 0) for batch in STEPS]
    assert tally.counters == {"bad": 5, "cut": 7}  # nothing counts before it is received
    for numbers, want in zip(sent, [{"bad": 7, "cut": 8}, {"bad": 7, "cut": 12}], strict=True):
        tally.receive(numbers)
        assert tally.counters == want
    assert tally.signum == 0
    tally.receive(tally.send(STEPS[1], signal.SIGINT))
    assert tally.signum == signal.SIGINT
    tally.receive(tally.send(STEPS[1], signal.SIGTERM))
    assert tally.signum == signal.SIGTERM
    tally.receive(tally.send(STEPS[1], 0))
    assert tally.counters == {"bad": 7, "cut": 24}


def test_who_reads_what_others_read_counts_nothing():
    tally = Tally(make_mesh(), Share(0, 2, False), {"bad": 0, "cut": 0})
    tally.receive(tally.send(STEPS[0], signal.SIGTERM))
    assert tally.counters == {"bad": 0, "cut": 0}
    assert tally.signum == signal.SIGTERM


def test_alone_a_signal_is_known_at_once():
    tally = Tally(make_mesh(), Share(0, 1, True), {"bad": 0, "cut": 0})
    tally.send(STEPS[0], signal.SIGTERM)
    assert tally.signum == signal.SIGTERM


def compare(monkeypatch, *parts):
    """`check_same` of processes that were given `parts`."""
    digests = []
    monkeypatch.setattr(agreement, "gather", lambda mine: digests.append(mine) or mine[None])
    for given in parts:
        check_same("config", given)
    monkeypatch.setattr(agreement, "gather", lambda mine: np.stack(digests))
    check_same("config", parts[-1])


def test_the_same_is_the_same(monkeypatch):
    compare(monkeypatch, *3 * [{"optim": "1", "data": "2"}])
    monkeypatch.undo()
    check_same("config", {"optim": "1"})  # alone


def test_who_differs_is_named_and_where(monkeypatch):
    first = {"optim": "1", "data": "2", "mesh": "3"}
    words = (
        "Process 1, 3 has another config than process 0, in optim, mesh; "
        "give all processes of a job the same."
    )
    with pytest.raises(SharedError) as raised:
        compare(
            monkeypatch, first, first | {"mesh": "4"}, first, first | {"optim": "", "mesh": "5"}
        )
    assert str(raised.value) == words


def test_numbers_keep_their_64_bits():
    number = 2**62 + 1
    assert agreement.from_primary(number) == number
    assert agreement.gather(np.array([[number, -1]])).tolist() == [[[number, -1]]]


def test_what_process_0_cannot_do_all_fail_by():
    done = []
    agreement.on_primary(lambda: done.append(1))
    assert done == [1]

    def fail():
        raise UserError("The disk is full.")

    with pytest.raises(SharedError, match=r"The disk is full\."):
        agreement.on_primary(fail)
