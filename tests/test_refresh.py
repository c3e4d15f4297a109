"""Refreshes: at their interval, in the loop's order, checked, and the same after a restart."""

import itertools
import shutil

import jax
import numpy as np
import pytest

from clipjax.config import apply_override
from clipjax.errors import UserError
from clipjax.mesh import make_mesh
from clipjax.prepare import prepare
from clipjax.refresh import make_refreshes, refreshed
from clipjax.step import init_state
from clipjax.workdir import resolve
from tests.test_train import run
from tests.test_updates import FREEZE
from tests.tiny_run import assert_same_arrays, saved, tiny_config, trajectory

SOURCE = {"kind": "drawings", "group": "concept", "styles": ("noto",)}
CENTRES = {"kind": "tests.tiny_core:centres", "source": SOURCE, "every": "2 steps"}


def config(refreshes, *overrides):
    found = tiny_config("evals={}", steps=6)
    found.unlock()
    found.model.kind = "tests.tiny_core:Remembering"
    found.refreshes = refreshes
    found.losses.queue = {"kind": "tests.tiny_core:text_queue"}
    found.lock()
    for override in (FREEZE, "checkpoint.keep=None", "checkpoint.every=1 steps", *overrides):
        apply_override(found, override)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(workdir, config=config({"centres": CENTRES | {"at_start": True}}))
    return workdir


def test_they_run_at_the_start_and_at_their_interval(whole):
    queues = [saved(whole, 8 * step)["params['queue']"] for step in range(1, 7)]
    same = [np.array_equal(a, b) for a, b in itertools.pairwise(queues)]
    assert same == [False, True, False, True, False]  # after 2, 4 and 6 steps
    assert np.any(queues[0])
    # The loss reads it, so a step after a refresh is another one.
    assert len({line["queue/loss"] for line in trajectory(whole)}) == 6


def test_a_resumed_run_is_the_same_bit_for_bit(whole, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(whole, again)
    for step in (3, 4, 5, 6):
        shutil.rmtree(again / "checkpoints" / str(8 * step))
    run(again, config=config({"centres": CENTRES | {"at_start": True}}))
    for step in (4, 6):
        assert_same_arrays(saved(again, 8 * step), saved(whole, 8 * step))
    assert trajectory(again) == trajectory(whole)


def test_copy():
    entry = {"kind": "copy", "source": "logit_scale", "target": "slow_scale", "at_start": True}
    mesh = make_mesh({"data": 2}, jax.devices()[:2])
    made = prepare(config({"teacher": entry}), mesh)
    state = init_state(made.model, made.config, made.optimizer, mesh)
    (refresh,) = make_refreshes(made.config)
    assert [refresh.is_due(samples, 8) for samples in (0, 8)] == [True, False]
    new = refreshed(refresh, state.params, None, 0, made)
    assert new["slow_scale"] == state.params["logit_scale"] != state.params["slow_scale"]
    pointers = [
        x.addressable_shards[0].data.unsafe_buffer_pointer()
        for x in (new["slow_scale"], new["logit_scale"])
    ]
    assert len(set(pointers)) == 2  # the step gives both away


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"every": 16}, "needs a 'kind', one of copy"),
        ({"kind": "copi", "every": 16}, "There is no refresh named 'copi' (did you mean 'copy'?)"),
        ({"kind": "copy", "source": "a", "target": "b"}, "needs `every`, a duration, or at_start"),
        ({"kind": "copy", "source": "a", "every": 16}, "needs the setting(s) target"),
        (
            {"kind": "copy", "source": "a", "target": "b", "evry": 1, "every": 16},
            "has no setting 'evry'",
        ),
        (
            {"kind": "tests.tiny_core:odd_refresh", "every": 16},
            "must be a function of params, encoder, samples, rng",
        ),
    ],
)
def test_entries_are_checked_at_the_start(entry, words):
    with pytest.raises(UserError) as error:
        make_refreshes(resolve(config({"mine": entry}), 100))
    assert words in str(error.value)


@pytest.fixture(scope="module")
def started():
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    made = prepare(config({}), mesh)
    return made, init_state(made.model, made.config, made.optimizer, mesh)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("fails", "fails at line"),
        ("list", "must return a dict, path -> array, not a list"),
        ("trained", "update of 'logit_scale', which trains"),
        ("shape", "update of 'queue' that is float32[3, 3], but the parameter is float32[16, 16]"),
    ],
)
def test_what_it_returns_is_checked(started, how, words):
    made, state = started
    entry = {"kind": "tests.tiny_core:bad_refresh", "how": how, "every": 16}
    (refresh,) = make_refreshes(resolve(config({"mine": entry}), 100))
    with pytest.raises(UserError) as error:
        refreshed(refresh, state.params, None, 16, made)
    assert str(error.value).startswith("The refresh 'mine' (tests.tiny_core:bad_refresh) ")
    assert words in str(error.value)
