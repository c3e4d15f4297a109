"""A mistake at the command line: status 2, one line, no traceback, and the workdir as it was."""

import hashlib
import json

import pytest

from clipjax.cli import main
from tests.tiny_run import CONFIG, start, trajectory

SMALL = ("--config.evals={}",)


def snapshot(folder):
    """Every path below, with the hash of its content."""
    if not folder.exists():
        return None
    return {
        str(path.relative_to(folder)): path.is_file()
        and hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
    }


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs a command that must be refused and leave `tmp_path` alone; returns what it says."""

    def run(*arguments):
        before = snapshot(tmp_path)
        capsys.readouterr()
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.endswith("\n")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert err.startswith(f"clipjax {arguments[0]}: ")
        assert snapshot(tmp_path) == before
        return err

    return run


@pytest.fixture
def train(refused, tmp_path):
    """`clipjax train` of the tiny config, into a new workdir, with something wrong."""
    return lambda *changes: refused(
        "train",
        f"--config={CONFIG}",
        f"--workdir={tmp_path / 'run'}",
        *SMALL,
        *(f"--config.{c}" for c in changes),
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    assert start(folder, "evals={}", steps=2).wait(timeout=120) == 0
    return folder


MISTAKES = {
    # Names and types
    "bach_size=4": "no field 'bach_size' (did you mean 'batch_size'",
    "batch_size=four": "config.batch_size must be a whole number, not 'four'",
    "batch_size=0": "batch_size must be at least 1",
    "total_samples=0": "total_samples is 0",
    "total_samples=-8": "not a valid duration",
    "optim.warmup=3 minutes": "config.optim.warmup = '3 minutes' is not a valid duration",
    "optim.warmup=99 epochs": "longer than the run",
    "losses={}": "config.losses is empty",
    # Kinds
    "losses.contrastive.kind=sofmax": "no loss named 'sofmax' (did you mean 'softmax'",
    "model.kind=dual_encodr": "no model named 'dual_encodr' (did you mean 'dual_encoder'",
    "model.image.kind=vti": "no image tower named 'vti'",
    "model.text.kind=transfomer": "no text tower named 'transfomer' (did you mean 'transformer'",
    "data.sources.drawings.kind=drawing": "no source named 'drawing' (did you mean 'drawings'",
    "data.features.text.captions.kind=name": "no caption policy named 'name'",
    "tokenizer.kind=clip_bpa": "no tokenizer named 'clip_bpa' (did you mean 'clip_bpe'",
    "optim.name=adamm": "no optimizer 'adamm' (did you mean 'adamw'",
    "optim.schedule=cosin": "no schedule 'cosin' (did you mean 'cosine'",
    "evals.mine={'kind': 'retreival', 'source': {'kind': 'drawings'}}": (
        "no evaluator named 'retreival' (did you mean 'retrieval'"
    ),
    "losses.contrastive.kind=no.such:thing": "cannot be imported: there is no module 'no'",
    "losses.contrastive.kind=clipjax.losses:nothing": "has no attribute 'nothing'",
    # Settings of what has a kind
    "losses.contrastive.layot=ring": "Loss 'contrastive' has no setting 'layot' (did you mean 'layout'",
    "losses.contrastive.layout=rng": "no loss layout 'rng' (did you mean 'ring'",
    "losses.contrastive.weight=heavy": "The weight of the loss 'contrastive' must be a number",
    "losses.contrastive.weight=((8, 1.0), (0, 2.0))": "in rising order",
    "losses.more={'weight': 1.0}": "The loss 'more' needs a 'kind'",
    "losses.more={'kind': 'sigmoid'}": "set config.model.init_bias",
    "losses.more={'kind': 'softmax', 'weight': (1.0, 2.0)}": "The weight of the loss 'more' must be",
    "losses.more={'kind': 'softmax', 'weight': 'much'}": "The weight of the loss 'more' must be",
    "model.image.dpeth=3": "no field 'model.image.dpeth' (did you mean 'depth'",
    "model.image.pool=avrage": "did you mean 'average'",
    "model.image.patch=32": "cannot be cut into patches of 32 px",
    "model.image.heads=3": "cannot be split into 3 heads",
    "model.text.heads=5": "cannot be split into 5 heads",
    "model.image.activation=gelo": "no activation 'gelo' (did you mean 'gelu'",
    "model.text.vocab_size=10": "smaller than the tokenizer's vocabulary of 48",
    "model.text.length=2": "leaves no room beside the special tokens",
    "model.dtype=float31": "not 'float31'",
    "model.param_dtype=float31": "model.param_dtype must be",
    "model.image_projection=liner": "no projection 'liner' (did you mean 'linear'",
    "data.sources={}": "config.data.sources is empty",
    "data.sources.drawings.splt=all": "'splt' (did you mean 'split'",
    "data.sources.drawings.split=sene": "did you mean 'seen'",
    "data.sources.drawings.weight=-1": "weight must be above 0",
    "data.sources.more={'kind': 'captions', 'file': 'nowhere.csv'}": "no caption file 'nowhere.csv'",
    "data.features.text.captions.nam=1": "has no setting 'nam' (did you mean 'name'",
    "data.features.image.augment.background=whit": "did you mean 'white'",
    "data.features.image.augment.fip=1": "augment has no setting 'fip' (did you mean 'flip'",
    "data.features.image.view=2": "The feature 'image' has no setting 'view' (did you mean 'views'",
    "data.features={}": "config.data.features is empty",
    "data.features.more={'kind': 'colum'}": "no feature named 'colum' (did you mean 'column'",
    "data.features.text.length=0": "features.text.length must be a whole number of at least 1",
    "data.order.kind=shufle": "no order named 'shufle' (did you mean 'shuffle'",
    "preprocess.resize=shortst": "did you mean 'shortest'",
    "preprocess.interpolation=bicubc": "did you mean 'bicubic'",
    "tokenizer.source=nowhere.json": "nowhere.json cannot be read",
    "evals.mine={'kind': 'retrieval'}": "The evaluator 'mine' needs a 'source'",
    "evals.mine={'kind': 'retrieval', 'source': {'kind': 'drawings', 'split': 'sen'}}": (
        "did you mean 'seen'"
    ),
    "evals.mine=retrieval": "config.evals.mine must be a section such as {'kind': ...}",
    "losses.contrastive=softmax": "config.losses.contrastive is a section",
    "data.sources.more=drawings": "config.data.sources.more must be a section",
    "tokenizer={'source': 'a.json'}": "config.tokenizer must be a section with a 'kind'",
    # Numbers that mean nothing
    "seed=-1": "config.seed must be from 0",
    "checkpoint.keep=0": "config.checkpoint.keep must be at least 1",
    "data.workers=-1": "config.data.workers must be at least 0",
    "optim.b1=1.0": "config.optim.b1 must be at least 0 and below 1",
    "optim.ema=1.5": "config.optim.ema must be at least 0 and below 1",
    "optim.clip_norm=small": "config.optim.clip_norm must be a number above 0",
    "data.sources.drawings.weight=nan": "a weight must be above 0",
    "data.features.image.augment.crop_scale=(0.5,)": "augment.crop_scale must be (low, high)",
    "data.features.image.augment.crop_ratio=(0, 1)": "augment.crop_ratio must be (low, high) above 0",
    "data.features.image.augment.flip=2": "augment.flip must be from 0 to 1",
    "data.features.text.captions.templates=('a {} {}',)": "The caption template 'a {} {}' must have one {}",
    "data.features.text.captions.name=1.5": "The probabilities of captions",
    "losses.contrastive.block_size=0": "block_size must be at least 1",
    "evals.mine={'kind': 'retrieval', 'source': {'kind': 'drawings'}, 'chunk': 'x'}": (
        "Evaluator 'mine' needs a whole number for 'chunk', not 'x'"
    ),
    # Rules
    "optim.freeze=(('imag/.*', True), ('.*', False))": "matches no parameter, 'imag/.*'",
    "optim.freeze=(('.*', True),)": "freezes every parameter",
    "optim.freeze=('image/.*', True)": "must be a tuple of (pattern, value) pairs",
    "optim.decay_rules=(('image/.*', 1.0),)": "says nothing about the parameter 'image_head/",
    "optim.lr_multipliers=(('(', 1.0),)": "not a valid regular expression",
    "optim.clip_values=(('logit_scale', 0.0),)": "(pattern, low, high)",
    "optim.clip_values=(('logit_bias', 0.0, 1.0),)": "matches no parameter, 'logit_bias'",
    # The mesh
    "mesh.tensor=3": "does not fill the 8 device(s)",
    "mesh.tensr=2": "The mesh has no axis 'tensr'",
    "mesh.tensor=-8": "Mesh sizes must be positive",
    # Weights to start from
    "init.image=nowhere": "'nowhere' is neither a checkpoint nor a pretrained tower",
    "init.imag=efficientnet_lite0": "a part 'imag' that the model does not have (did you mean 'image'",
    f"init.image={CONFIG.parent}": "is not a checkpoint",
}


@pytest.mark.parametrize("change", MISTAKES)
def test_mistakes_in_settings(train, change):
    assert MISTAKES[change] in train(change)


def test_a_batch_that_does_not_divide(train):
    said = train("batch_size=12")
    assert "batch_size = 12 does not divide over 8 devices" in said


def test_missing_config_file(refused, tmp_path):
    said = refused("train", "--config=configs/quikstart.py", f"--workdir={tmp_path / 'run'}")
    assert "no config file 'configs/quikstart.py'" in said
    assert "show" in refused("show", "--config=nowhere.py")


def test_weights_of_another_shape(train, workdir):
    said = train(f"init.image={workdir}", "model.image.width=32")
    assert "stem/kernel has shape [8, 8, 3, 16], the model wants [8, 8, 3, 32]" in said
    said = train(f"init.image={workdir}", "model.image.pool=average")
    assert "class_token is left over" in said
    said = train(f"init.image={workdir}", "model.image.registers=2")
    assert "is missing" in said


def test_workdir_of_another_config(refused, workdir):
    before = snapshot(workdir)
    arguments = ("train", f"--config={CONFIG}:2", f"--workdir={workdir}", *SMALL)
    said = refused(*arguments, "--config.optim.lr=0.5", "--config.model.image.mlp_ratio=2.0")
    assert (
        "belongs to another config; it differs in model.image.mlp_ratio (there 4.0, now 2.0)"
        in said
    )
    assert "optim.lr (there 0.003, now 0.5)" in said
    assert snapshot(workdir) == before
    # A mistake is told before that, and changes nothing either.
    refused(*arguments, "--config.optim.name=adm")
    assert snapshot(workdir) == before
    # What only changes how the run goes on is not another config.
    assert main([*arguments, "--config.log.every=1 steps", "--config.data.threads=1"]) == 0
    assert [line["samples"] for line in trajectory(workdir)] == [8, 16]


def test_workdir_that_is_not_one(refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("text")
    arguments = ["train", f"--config={CONFIG}:2", *SMALL]
    assert "cannot be written" in refused(*arguments, f"--workdir={file}")
    assert "cannot be written" in refused(*arguments, f"--workdir={file / 'below'}")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    said = refused(*arguments, f"--workdir={tmp_path / 'run'}")
    assert "holds checkpoints but no config.json" in said
    (tmp_path / "run" / "config.json").write_text("not json")
    said = refused(*arguments, f"--workdir={tmp_path / 'run'}")
    assert "is not a config that clipjax wrote" in said
    (tmp_path / "run" / "config.json").write_text(json.dumps([1, 2]))
    said = refused(*arguments, f"--workdir={tmp_path / 'run'}")
    assert "is not a config that clipjax wrote" in said


def test_checkpoints_that_are_none(refused, tmp_path, workdir):
    texts = tmp_path / "texts.txt"
    texts.write_text("a cat\n")

    def embed(path):
        output = f"--output={tmp_path / 'out.npz'}"
        return refused("embed", f"--checkpoint={path}", f"--texts={texts}", output)

    assert "There is no checkpoint at" in embed(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is not a checkpoint" in embed(tmp_path / "empty")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    assert "holds no tensors" in embed(file)
    foreign = tmp_path / "foreign" / "checkpoints" / "100"
    for item in ("params", "meta"):
        (foreign / item).mkdir(parents=True)
    assert "100' cannot be read, so it is damaged or foreign" in embed(tmp_path / "foreign")
    assert "There is no checkpoint at" in refused("eval", f"--checkpoint={tmp_path / 'nowhere'}")
    said = refused("eval", f"--checkpoint={workdir}")
    assert "names no evaluators" in said
