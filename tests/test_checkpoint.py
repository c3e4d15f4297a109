"""Checkpoints: what is kept, what comes back, on which mesh, and what is refused."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clipjax
from clipjax import checkpoint, optim, rules
from clipjax.checkpoint import Checkpointer, due
from clipjax.data.tokenizers import make_tokenizer
from clipjax.errors import UserError
from clipjax.mesh import make_mesh
from clipjax.models import make_model
from clipjax.step import abstract_state, init_state
from tests.tiny_run import tiny_config

TRAIN = {"step": jnp.int32(3)}


@given(st.integers(1, 300), st.integers(1, 40))
def test_due_once_for_each_multiple(every, batch):
    clock = range(batch, 50 * batch + 1, batch)
    moments = [s for s in clock if due(s, every, batch)]
    if every >= batch:
        # The first step at or after each multiple.
        assert moments == [-(-m // batch) * batch for m in range(every, clock[-1] + 1, every)]
    else:
        assert moments == list(clock)
    assert not any(due(s, None, batch) for s in clock)


def kept(folder, clock, **options):
    checkpoints = Checkpointer(folder, **options)
    for samples in clock:
        params = {"w": jnp.full(3, float(samples))}
        checkpoints.save(samples, params, TRAIN, {"samples": samples}, {"config": {}})
    checkpoints.wait()
    checkpoints.close()
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(keep=1), [96]),
        (dict(keep=2), [80, 96]),
        (dict(keep=None), [16, 32, 48, 64, 80, 96]),
        (dict(keep=1, keep_every=40), [48, 80, 96]),
        (dict(keep=1, keep_every=16), [16, 32, 48, 64, 80, 96]),
        (dict(keep=2, keep_every=1000), [80, 96]),
    ],
)
def test_retention(tmp_path, options, expected):
    assert kept(tmp_path, range(16, 97, 16), **options) == expected
    assert checkpoint.newest(tmp_path / "checkpoints") == 96


def test_retention_across_restarts(tmp_path):
    kept(tmp_path, (16, 32, 48), keep=1, keep_every=40)
    assert kept(tmp_path, (64, 80, 96), keep=1, keep_every=40) == [48, 80, 96]


def test_saved_arrays_may_change_at_once(tmp_path):
    """The write goes on in the background while the next step reuses the buffers."""
    increment = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    params = {"w": jnp.zeros((64, 1024))}
    checkpoints = Checkpointer(tmp_path, keep=None)
    for samples in (1, 2, 3):
        params = {"w": increment(params["w"])}
        checkpoints.save(samples, params, TRAIN, {}, {})
    params = {"w": increment(params["w"])}
    params["w"].block_until_ready()
    checkpoints.wait()
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)  # noqa: E731
    like, train_like = jax.tree.map(shape, (params, TRAIN))
    for samples in (1, 2, 3):
        restored, _, _ = checkpoints.restore(samples, like, train_like)
        np.testing.assert_array_equal(restored["w"], float(samples))
    checkpoints.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A saved state, born on eight devices, and how to describe it on another mesh."""
    config = tiny_config()
    model = make_model(config.model)
    made = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    shapes = abstract_state(model, config, optax.identity(), made)
    optimizer = optim.make_optimizer(config.optim, shapes.params, lambda _: 0.1)
    state = init_state(model, config, optimizer, made)
    folder = tmp_path_factory.mktemp("saved")
    tokenizer = make_tokenizer(config.tokenizer, config.model.text.length)
    checkpoints = Checkpointer(folder)
    meta = {"samples": 24, "bad": 1, "cut": 2, "config": config.to_dict()}
    train = {"step": state.step, "optimizer": state.optimizer, "ema": state.ema}
    checkpoints.save(24, state.params, train, meta, checkpoint.pack_tokenizer(tokenizer))
    checkpoints.wait()
    checkpoints.close()
    return folder, state, lambda mesh: abstract_state(model, config, optimizer, mesh)


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 4, "tensor": 2}, {"data": 1}])
def test_restore_into_another_mesh(run, sizes):
    folder, state, like_on = run
    count = int(np.prod(list(sizes.values())))
    mesh = make_mesh(sizes, jax.devices()[:count])
    like = like_on(mesh)
    reader = Checkpointer(folder)
    train_like = {"step": like.step, "optimizer": like.optimizer, "ema": like.ema}
    params, train, meta = reader.restore(24, like.params, train_like)
    reader.close()
    found, wanted = (
        (params, train["optimizer"], train["ema"]),
        (like.params, like.optimizer, like.ema),
    )
    saved = (state.params, state.optimizer, state.ema)
    for a, b, c in zip(*map(jax.tree.leaves, (found, wanted, saved)), strict=True):
        assert a.sharding == b.sharding
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, c)
    assert (meta["bad"], meta["cut"]) == (1, 2)


def test_the_tokenizer_travels(run):
    folder, _, _ = run
    model = clipjax.load(folder)
    original = make_tokenizer(tiny_config().tokenizer, 8)
    texts = ["A cat", "", "naïve fox: 3-4"]
    np.testing.assert_array_equal(model.tokenizer(texts), original(texts))
    assert model.config.preprocess.to_dict() == tiny_config().preprocess.to_dict()


def test_a_tokenizer_stays_in_its_folder():
    packed = {"config": {"kind": "hf_json"}, "files": {"../evil": ""}}
    with pytest.raises(UserError, match="a file outside its folder"):
        checkpoint.unpack_tokenizer(packed)


def test_misfits_are_named(run):
    folder, _, like_on = run
    like = like_on(make_mesh())
    flat = rules.paths(like.params)
    stem = flat["image/stem/kernel"]
    changed = dict(flat) | {
        "image/stem/kernel": jax.ShapeDtypeStruct(
            (4, 4, 3, 16), stem.dtype, sharding=stem.sharding
        ),
        "image/extra": stem,
    }
    del changed["logit_scale"]
    reader = Checkpointer(folder)
    with pytest.raises(UserError) as caught:
        reader.restore(24, rules.tree(changed), {})
    reader.close()
    message = str(caught.value)
    assert "image/stem/kernel has shape [8, 8, 3, 16], the model wants [4, 4, 3, 16]" in message
    assert "image/extra is missing" in message
    assert "logit_scale is left over" in message


def test_find(run, tmp_path):
    folder, _, _ = run
    place = checkpoint.find(folder)
    assert place.name == "24"
    assert checkpoint.find(folder / "checkpoints") == place
    assert checkpoint.find(place) == place
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "nowhere") is None
    # What a kill leaves of a save is not a checkpoint.
    (tmp_path / "checkpoints" / "32.orbax-checkpoint-tmp-7" / "meta").mkdir(parents=True)
    assert checkpoint.newest(tmp_path / "checkpoints") is None
    with pytest.raises(UserError, match="is not a clipjax checkpoint"):
        checkpoint.find(tmp_path)
    with pytest.raises(UserError, match="There is no checkpoint at"):
        checkpoint.find(tmp_path / "nowhere")


@pytest.mark.parametrize("item", ["meta", "params", "tokenizer"])
def test_a_damaged_checkpoint(run, tmp_path, item):
    folder, _, _ = run
    shutil.copytree(folder, tmp_path / "copy")
    for file in (tmp_path / "copy" / "checkpoints" / "24" / item).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:5])
    with pytest.raises(
        UserError, match="24' cannot be read, so it is damaged or foreign"
    ) as caught:
        clipjax.load(tmp_path / "copy")
    assert "\n" not in str(caught.value)
