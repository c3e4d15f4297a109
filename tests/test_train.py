"""The train loop on the smallest real run, in this process."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

import clipjax
from clipjax import mesh, rules, train
from clipjax.errors import UserError
from clipjax.log.run_log import RunLog
from tests.tiny_run import losses, sample_ids, tiny_config, trajectory


class Spy:
    """What a run did: the order of dispatches and fetches, the state after each step."""

    def __init__(self, patch):
        self.events, self.params, self.ema, self.state = [], [], [], None
        real_jit, real_finish = jax.jit, RunLog.finish_step

        def jit(function, **options):
            compiled = real_jit(function, **options)
            if getattr(function, "__name__", "") != "step":
                return compiled

            def step(state, batch):
                if not self.params:
                    self.keep(state)
                self.events.append(("dispatch", len(self.params)))
                state, metrics = compiled(state, batch)
                self.keep(state)
                return state, metrics

            step.trace = compiled.trace
            return step

        def finish(log, samples, *rest):
            self.events.append(("fetch", samples // 8))
            real_finish(log, samples, *rest)

        patch.setattr(jax, "jit", jit)
        patch.setattr(RunLog, "finish_step", finish)

    def keep(self, state):
        copy = lambda tree: {p: np.array(x) for p, x in rules.paths(tree).items()}  # noqa: E731
        self.params.append(copy(state.params))
        self.ema.append(copy(state.ema))


def run(workdir, *overrides, steps=6, devices=1, config=None, spy=False):
    """Trains on the first so many of the simulated devices. Returns what the spy saw, or the final state."""
    with pytest.MonkeyPatch.context() as patch:
        some = jax.devices()[:devices]
        patch.setattr(train, "make_mesh", lambda sizes: mesh.make_mesh(sizes, some))
        seen = Spy(patch) if spy else None
        state = train.train(config or tiny_config(*overrides, steps=steps), workdir)
        return seen or state


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("done")
    return workdir, run(workdir, "checkpoint.keep=2", "log.tensorboard=True", steps=6, spy=True)


def test_run_directory(done):
    workdir, _ = done
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        *("checkpoints", "config.json", "metrics.jsonl", "report.html", "results.json"),
        *("modules.json", "sample_ids", "tensorboard", "versions.json"),
    }
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"32", "48"}
    assert (workdir / "report.html").read_text().lstrip().startswith("<!")


def test_config_and_versions(done):
    workdir, _ = done
    config = json.loads((workdir / "config.json").read_text())
    # Every duration is a number of samples now.
    assert config["total_samples"] == 48
    assert config["checkpoint"]["every"] == 32
    assert config["optim"]["warmup"] == 16
    assert config["evals"]["unseen"]["every"] == 24
    assert config["log"]["every"] == 8
    versions = json.loads((workdir / "versions.json").read_text())
    assert {"clipjax", "jax", "flax", "numpy", "python", "git_commit"} <= versions.keys()
    assert versions["jax"] == jax.__version__


def test_metrics(done):
    workdir, _ = done
    lines = trajectory(workdir)
    steps = [line for line in lines if "loss" in line]
    assert [(line["samples"], line["step"]) for line in steps] == [(8 * k, k) for k in range(1, 7)]
    for line in steps:
        assert line["loss"] == line["contrastive/loss"]
        assert line["grad_norm"] > 0
        assert line["data/bad_records"] == 0
        assert line["logit_scale"] == pytest.approx(1 / 0.07, rel=0.1)
    cosine = [3e-3 * (1 + np.cos(np.pi * k / 4)) / 2 for k in range(4)]
    rates = [line["learning_rate"] for line in steps]
    np.testing.assert_allclose(rates, [1.5e-3, 3e-3, *cosine], rtol=1e-5)
    text = (workdir / "metrics.jsonl").read_text()
    assert "samples_per_second" in text


def test_results_are_the_last_values_of_the_evaluators(done):
    workdir, _ = done
    results = json.loads((workdir / "results.json").read_text())
    assert results["unseen"]["samples"] == 48
    assert results["unseen"]["protocol"]
    evaluated = [line for line in trajectory(workdir) if "loss" not in line]
    assert [line["samples"] for line in evaluated] == [24, 48]
    for key, value in results["unseen"]["metrics"].items():
        assert evaluated[-1][f"unseen/{key}"] == value
        assert 0 <= value <= 1


def test_sample_ids(done):
    workdir, _ = done
    lines = [json.loads(line) for line in sample_ids(workdir).splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert len({i for line in lines for i in line["sample_ids"]}) == 48


def test_the_checkpoint_is_a_model(done):
    workdir, spy = done
    model = clipjax.load(workdir)
    averaged = spy.params[-1] | spy.ema[-1]
    for path, leaf in rules.paths(model.params).items():
        np.testing.assert_array_equal(leaf, averaged[path], err_msg=path)
    images = [np.full((40, 30, 3), 200, np.uint8), np.zeros((16, 16, 3), np.uint8)]
    for embedding in (model.encode_image(images), model.encode_text(["cat", "a red dog"])):
        assert embedding.shape == (2, 16)
        assert embedding.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1.0, rtol=1e-5)
    assert model.config.preprocess.resize == "shortest"
    assert model.tokenizer.encode("cat") == [2, 6, 4, 23, 3]
    older = clipjax.load(workdir / "checkpoints" / "32")
    assert float(older.params["logit_scale"]) == spy.ema[4]["logit_scale"]


def test_fetches_follow_the_next_dispatch(done):
    _, spy = done
    # The evaluator at step 3 and the checkpoints at 4 and 6 need the metrics at once; the others wait.
    assert spy.events == [
        *(("dispatch", 1), ("dispatch", 2), ("fetch", 1), ("dispatch", 3), ("fetch", 2)),
        *(("fetch", 3), ("dispatch", 4), ("fetch", 4)),
        *(("dispatch", 5), ("dispatch", 6), ("fetch", 5), ("fetch", 6)),
    ]


def test_average_against_plain_python(done):
    _, spy = done
    average = spy.params[0]
    np.testing.assert_equal(spy.ema[0], average)
    for k, params in enumerate(spy.params[1:]):
        decay = min(0.9, (1 + k) / (10 + k))
        average = {p: decay * average[p] + (1 - decay) * params[p] for p in average}
        for path, value in spy.ema[k + 1].items():
            np.testing.assert_allclose(value, average[path], rtol=1e-5, atol=1e-7, err_msg=path)
    assert spy.ema[-1].keys() == spy.params[-1].keys()


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_the_step_compiles_once(tmp_path, caplog, sizes):
    data, fsdp, tensor = sizes
    overrides = (f"mesh.data={data}", f"mesh.fsdp={fsdp}", f"mesh.tensor={tensor}")
    schedule = "losses.contrastive.weight=((0, 1.0), (40, 0.5))"
    with jax.log_compiles():
        run(tmp_path, "evals={}", *overrides, schedule, steps=6, devices=data * fsdp * tensor)
    finished = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
    assert finished.count("step") == 1
    assert finished.count("fresh") == 1


@pytest.fixture(scope="module")
def five_steps(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    run(workdir, "evals={}", "log.every=8", steps=5)
    return losses(workdir), sample_ids(workdir)


@pytest.mark.parametrize(
    ("devices", "sizes"),
    [
        (2, "data=2"),
        (4, "fsdp=4"),
        (2, "tensor=2"),
        (8, "data=2,fsdp=2,tensor=2"),
    ],
)
def test_the_mesh_changes_nothing(tmp_path, five_steps, devices, sizes):
    given = {"data": 1} | dict(pair.split("=") for pair in sizes.split(","))
    overrides = [f"mesh.{axis}={size}" for axis, size in given.items()]
    run(tmp_path, "evals={}", *overrides, steps=5, devices=devices)
    assert sample_ids(tmp_path) == five_steps[1]
    np.testing.assert_allclose(losses(tmp_path), five_steps[0], rtol=1e-5)


def test_a_locked_tower(tmp_path):
    """LiT is a freeze list: locked parameters keep every bit, and have neither moments nor an average."""
    freeze = "optim.freeze=(('image/.*', True), ('.*', False))"
    spy = run(tmp_path, "evals={}", freeze, steps=3, spy=True)
    first, last = spy.params[0], spy.params[-1]
    for path in first:
        assert np.array_equal(first[path], last[path]) == path.startswith("image/"), path
    state = run(tmp_path, "evals={}", freeze, steps=3)  # ends at once: it is done
    moments = jax.tree_util.tree_leaves_with_path((state.optimizer, state.ema))
    names = {k.key for path, _ in moments for k in path if hasattr(k, "key")}
    assert names == {path for path in first if not path.startswith("image/")}


def test_locked_layers_of_a_stack(tmp_path):
    freeze = "optim.freeze=(('image/.*/blocks/0/.*', True), ('.*', False))"
    spy = run(tmp_path, "evals={}", "model.image.depth=2", freeze, steps=3, spy=True)
    first, last = spy.params[0], spy.params[-1]
    stacked = [path for path in first if path.startswith("image/") and "/blocks/" in path]
    assert stacked
    for path in stacked:
        np.testing.assert_array_equal(first[path][0], last[path][0], err_msg=path)
        assert not np.array_equal(first[path][1], last[path][1]), path


def test_a_loss_that_is_not_finite(tmp_path):
    config = tiny_config("evals={}", "checkpoint.every=2 steps", steps=20)
    with config.unlocked():
        config.losses.contrastive.weight = ((0, 1.0), (39, 1.0), (40, float("inf")))
    with pytest.raises(UserError) as caught:
        run(tmp_path, config=config)
    message = str(caught.value)
    assert "The loss is inf at 48 samples" in message
    assert "\n" not in message
    sixth = json.loads(sample_ids(tmp_path).splitlines()[5])["sample_ids"]
    assert ", ".join(map(str, sixth)) in message
    assert [line["samples"] for line in trajectory(tmp_path)] == [8, 16, 24, 32, 40]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["32"]
    assert np.isfinite(clipjax.load(tmp_path).encode_text(["cat"])).all()


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path):
    config = tiny_config("evals={}", "checkpoint.every=8", steps=4)
    with config.unlocked():
        config.losses.bad = {"kind": "tests.tiny_parts:good_value_bad_gradient"}
    with pytest.raises(UserError, match="gradient norm is nan at 8 samples"):
        run(tmp_path, config=config)
    assert not list((tmp_path / "checkpoints").iterdir())


def flawed(every, *overrides, steps=8):
    config = tiny_config("evals={}", *overrides, steps=steps)
    with config.unlocked():
        config.data.sources = {"flawed": {"kind": "tests.tiny_parts:Flawed", "every": every}}
    return config


def test_bad_records_are_replaced_and_counted(tmp_path):
    run(tmp_path, config=flawed(12, "data.max_bad_fraction=0.3"))
    ids = [i for line in sample_ids(tmp_path).splitlines() for i in json.loads(line)["sample_ids"]]
    assert len(ids) == 64
    assert not [i for i in ids if i % 12 == 0]
    counted = [line["data/bad_records"] for line in trajectory(tmp_path)]
    assert counted == sorted(counted)
    assert 1 <= counted[-1] <= 16
    run(tmp_path / "clean", config=flawed(1000))  # only record 0 is broken
    # Only the places of the bad records changed.
    others = sample_ids(tmp_path / "clean").splitlines()
    other_ids = [i for line in others for i in json.loads(line)["sample_ids"]]
    changed = sum(a != b for a, b in zip(ids, other_ids, strict=True))
    assert changed == sum(i % 12 == 0 and i > 0 for i in other_ids)


def test_too_many_bad_records_stop_the_run(tmp_path):
    with pytest.raises(UserError, match=r"records could not be used.*max_bad_fraction = 0.01"):
        run(tmp_path, config=flawed(3))


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_bad_records(tmp_path, workers):
    with pytest.raises(
        UserError, match=r"20 records of source 'flawed' cannot be used at place \d+ .*verify\.$"
    ):
        run(tmp_path, config=flawed(1, f"data.workers={workers}"))


def test_the_run_ends_with_a_whole_batch(tmp_path):
    run(tmp_path, "total_samples=29", "evals={}")
    assert [line["samples"] for line in trajectory(tmp_path)] == [8, 16, 24, 32]
    assert json.loads((tmp_path / "config.json").read_text())["total_samples"] == 32
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["32"]


def test_a_finished_run_started_again(tmp_path, capsys):
    """It says so, repeats nothing, and writes the report again; fewer samples than were seen are no mistake."""
    run(tmp_path, "optim.schedule=constant", steps=3)
    before = trajectory(tmp_path), (tmp_path / "results.json").read_text()
    for steps in (3, 2):
        (tmp_path / "report.html").unlink()
        capsys.readouterr()
        state = run(tmp_path, "optim.schedule=constant", steps=steps)
        assert int(state.step) == 3
        assert "This run is finished: it has seen 24 samples" in capsys.readouterr().out
        assert (trajectory(tmp_path), (tmp_path / "results.json").read_text()) == before
        assert (tmp_path / "report.html").exists()


def test_results_of_the_future_are_forgotten(tmp_path):
    """A run that was killed between an evaluation and its checkpoint does not report what it has not reached."""
    run(tmp_path, "optim.schedule=constant", steps=2)
    results = json.loads((tmp_path / "results.json").read_text())
    results["unseen"]["samples"] = 999
    (tmp_path / "results.json").write_text(json.dumps(results))
    run(tmp_path, "optim.schedule=constant", steps=3)
    assert json.loads((tmp_path / "results.json").read_text())["unseen"]["samples"] == 24


def test_losses_add_up_with_their_weights(tmp_path):
    config = tiny_config("evals={}", "model.init_bias=-2.0", steps=6)
    with config.unlocked():
        config.losses = {
            "first": {"kind": "softmax", "weight": ((0, 1.0), (32, 0.5))},
            "second": {"kind": "clipjax.losses.sigmoid:sigmoid", "weight": 2.0},
        }
    run(tmp_path, config=config)
    lines = trajectory(tmp_path)
    assert len(lines) == 6
    for line in lines:
        seen = line["samples"] - 8  # before this step
        weight = 1.0 - 0.5 * min(seen / 32, 1.0)
        total = weight * line["first/loss"] + 2.0 * line["second/loss"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        assert "logit_bias" in line


def test_a_workdir_of_before_a_field_was_there_goes_on(done, tmp_path):
    """A field that the old config.json lacks had what is its default now."""
    workdir = tmp_path / "old"
    shutil.copytree(done[0], workdir)
    file = workdir / "config.json"
    old = json.loads(file.read_text())
    del old["refreshes"], old["optim"]["follow"], old["optim"]["settings"]
    file.write_text(json.dumps(old))
    overrides = ("checkpoint.keep=2", "log.tensorboard=True")
    run(workdir, *overrides, steps=6)
    with pytest.raises(UserError, match=r"optim.settings.momentum \(there None, now 0.5\)"):
        run(workdir, *overrides, "optim.settings={'momentum': 0.5}", "optim.name='sgd'", steps=6)
