"""`clipjax convert` and `clipjax.load` on directories of other libraries, with every option, and what they refuse."""

import json
import shutil
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image
from safetensors.numpy import load_file, save_file

import clipjax
from clipjax import checkpoint
from clipjax.cli import main
from clipjax.convert import hub
from clipjax.convert.arguments import byte_count, mesh_sizes
from clipjax.convert.command import convert
from clipjax.convert.files import Tensor
from clipjax.convert.files.torch_writer import write_torch
from clipjax.convert.folders import open_weights
from clipjax.convert.positions import resample_grid, resample_line
from clipjax.convert.pretrained import load_pretrained
from clipjax.convert.shapes import parameter_shapes
from clipjax.convert.source import cast, open_source, resized
from clipjax.errors import UserError
from tests.convert.parity_cases import GOLDENS


@pytest.fixture
def refusal(capsys):
    """The one sentence on standard error of a command that must fail."""

    def run(*arguments):
        assert main([str(a) for a in arguments]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert error.count("\n") == 1
        return error

    return run


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(found[path].read(), wanted[path].read(), err_msg=path)


def test_from_the_command_line(their, tmp_path, capsys):
    source, target = their("open_clip_vit"), tmp_path / "ours"
    assert main(["convert", f"--source={source}", f"--target={target}"]) == 0
    assert "open_clip -> clipjax" in capsys.readouterr().out
    same(open_source(target).params, open_source(source).params)
    meta, _ = checkpoint.read_meta(epath.Path(target))
    assert meta["origin"]["format"] == "open_clip"
    assert meta["config"]["model"]["embed_dim"] == 28
    again = tmp_path / "again"
    assert main(["convert", f"--source={target}", f"--target={again}", "--to=hugging_face"]) == 0
    assert json.loads((again / "config.json").read_text())["model_type"] == "clip"


def test_load_takes_the_library_s_own_directory(their, tmp_path):
    golden, path = GOLDENS["open_clip_vit"], their("open_clip_vit")
    direct = clipjax.load(path)
    batch, wanted = golden.batch(), golden.embeddings()
    found = direct.encode_pixels(batch["image"]), direct.encode_tokens(batch["text"])
    assert np.abs(found[0] - wanted["image_embedding"]).max() <= 1e-5
    assert np.abs(found[1] - wanted["text_embedding"]).max() <= 1e-5
    assert direct.logit_scale == pytest.approx(np.exp(golden.data["outputs"]["logit_scale"]))
    file = next(path.glob("*.safetensors"))
    same_model = clipjax.load(file)
    np.testing.assert_array_equal(same_model.encode_pixels(batch["image"]), found[0])
    with pytest.raises(UserError, match="came without a tokenizer"):
        direct.encode_text(["a cat"])


def test_single_towers(their):
    vision = clipjax.load(their("hugging_face_dinov2"))
    img = Image.fromarray(np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3))
    assert vision.encode_image([img]).shape == (1, 36)
    for call in (lambda: vision.encode_text(["a cat"]), lambda: vision.encode_tokens([[1]])):
        with pytest.raises(UserError, match="has no text tower, so it cannot embed texts"):
            call()
    with pytest.raises(UserError, match="A single tower has no logit scale"):
        _ = vision.logit_scale
    text = clipjax.load(their("hugging_face_bert"), model="mean")
    golden = GOLDENS["hugging_face_bert"]
    found = text.encode_tokens(golden.batch()["text"])
    assert np.abs(found - golden.embeddings()["text_embedding"]).max() <= 1e-5
    with pytest.raises(UserError, match="has no image tower, so it cannot embed images"):
        text.encode_image([img])


@pytest.mark.parametrize(("model", "field"), [("mean", "mean"), ("class", "cls"), (None, "pooled")])
def test_the_poolings_of_a_bert(their, model, field):
    golden = GOLDENS["hugging_face_bert"]
    found = clipjax.load(their("hugging_face_bert"), model=model)
    wanted = np.array(golden.data["outputs"][field])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.abs(found.encode_tokens(golden.batch()["text"]) - wanted).max() <= 1e-5


def test_naflex_takes_images_of_any_shape(their):
    model = clipjax.load(their("hugging_face_siglip2_naflex"))
    rng = np.random.default_rng(0)
    sides = [(40, 90), (32, 32), (7, 50)]
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in sides]
    together = model.encode_image(images)
    assert together.shape[0] == 3
    alone = np.concatenate([model.encode_image([p]) for p in images])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-2
    assert model.encode_image([]).shape == (0, together.shape[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(their, tmp_path, dtype):
    source = their("openai_vit")  # float16, its norms float32
    assert convert(str(source), str(tmp_path / "ours"), dtype=dtype) == 0
    found, kept = open_source(tmp_path / "ours").params, open_source(source).params
    assert {t.dtype for t in found.values()} == {jnp.dtype(dtype)}
    assert {t.dtype.name for t in kept.values()} == {"float16", "float32"}
    for path, tensor in kept.items():
        np.testing.assert_array_equal(found[path].read(), tensor.read().astype(dtype))
    # What computes is another matter: parameters come as the model declares them.
    loaded = clipjax.load(tmp_path / "ours")
    assert {x.dtype.name for x in jax.tree.leaves(loaded.params)} == {"float32"}


def test_a_number_too_large_for_the_dtype_is_named(their):
    source = open_source(their("open_clip_vit"))
    large = Tensor((), np.dtype(np.float32), lambda: np.float32(1e6))
    params = cast(
        source.__class__(**{**vars(source), "params": {"logit_scale": large}}), "float16"
    ).params
    with pytest.raises(UserError, match="logit_scale holds numbers that float16 cannot"):
        params["logit_scale"].read()


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("open_clip_vit", "bicubic_antialias"),
        ("hugging_face_clip_gelu", "bicubic"),
        ("big_vision_siglip", "zoom"),
    ],
)
def test_another_size_and_length(their, tmp_path, name, method):
    path = their(name)
    source = open_source(path)
    prefix = 0 if name.startswith("big") else 1
    assert convert(str(path), str(tmp_path / "ours"), size=40, length=12) == 0
    found = open_source(tmp_path / "ours")
    old = source.params["image/position_embedding"].read()
    new = found.params["image/position_embedding"].read()
    np.testing.assert_array_equal(new, resample_grid(old, 5, method, prefix))
    text = source.params["text/position_embedding"].read()
    np.testing.assert_array_equal(
        found.params["text/position_embedding"].read(), resample_line(text, 12)
    )
    assert (found.config.model.image.size, found.config.model.text.length) == (40, 12)
    assert found.tokenizer.length == 12
    model = clipjax.load(path, size=40, length=12)
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, 40, 40, 3)).astype(np.float32)
    np.testing.assert_allclose(
        model.encode_pixels(pixels),
        clipjax.load(tmp_path / "ours").encode_pixels(pixels),
        atol=1e-6,
    )


def test_resnets_and_mlcd_at_another_size(their):
    resnet = resized(open_source(their("openai_resnet")), size=96)
    assert resnet.params["image/pool/position_embedding"].shape[0] == 10
    rotary = resized(open_source(their("hugging_face_mlcd")), size=40)
    assert "image/position_embedding" not in rotary.params
    assert clipjax.load(their("hugging_face_mlcd"), size=40).config.model.image.size == 40


def test_split_for_a_mesh(their, tmp_path):
    path = their("hugging_face_siglip")
    assert convert(str(path), str(tmp_path / "ours"), mesh={"fsdp": 4, "tensor": 2}) == 0
    leaf = rules_metadata(tmp_path / "ours")["text/transformer/blocks/mlp/fc_in/kernel"]
    layers, width, hidden = leaf.shape
    assert leaf.storage.chunk_shape == (layers, width // 4, hidden // 2)
    same(open_source(tmp_path / "ours").params, open_source(path).params)


def rules_metadata(folder):
    return clipjax.rules.paths(checkpoint.parameter_metadata(epath.Path(folder)))


def test_shards(their, tmp_path):
    path = their("hugging_face_clip_gelu")
    target = tmp_path / "shards"
    assert convert(str(path), str(target), to="hugging_face", max_shard_bytes=30_000) == 0
    files = sorted(target.glob("*.safetensors"))
    assert len(files) > 1
    assert max(f.stat().st_size for f in files) < 40_000
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f.name for f in files}
    same(open_source(target).params, open_source(path).params)


def test_files_of_torch(their, tmp_path):
    """OpenAI's loader takes `.pt` alone; ours reads what is written, in the dtypes that it came in."""
    path = their("openai_vit")
    assert convert(str(path), str(tmp_path / "back"), to="openai") == 0
    (file,) = (tmp_path / "back").iterdir()
    assert file.name == "model.pt"
    opened = open_weights(file)
    assert opened.kind == "torch"
    for key, tensor in open_weights(path).tensors.items():
        assert opened.tensors[key].dtype == tensor.dtype
        np.testing.assert_array_equal(opened.tensors[key].read(), tensor.read(), err_msg=key)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    with pytest.raises(UserError, match=r"is for safetensors; openai has one file, model\.pt"):
        convert(str(path), str(tmp_path / "x"), to="openai", max_shard_bytes=1000)
    with pytest.raises(UserError, match="exists already"):
        write_torch(file, [])


def test_a_run_leaves_as_its_averages(tiny_run, tmp_path):
    assert convert(str(tiny_run), str(tmp_path / "ours")) == 0
    wanted = clipjax.load(tiny_run)
    found = clipjax.load(tmp_path / "ours")
    texts = ["a cat", "a dog"]
    np.testing.assert_array_equal(found.encode_text(texts), wanted.encode_text(texts))
    meta, _ = checkpoint.read_meta(epath.Path(tmp_path / "ours"))
    assert meta["samples"] == 32


def test_what_a_format_cannot_express_is_named(tiny_run, tmp_path, refusal):
    error = refusal("convert", f"--source={tiny_run}", f"--target={tmp_path / 'x'}", "--to=openai")
    assert "cannot express" in error or "cannot say" in error
    assert not list(tmp_path.iterdir())


def test_targets_are_never_overwritten(their, tmp_path, refusal):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("there", "file"):
        for to in ("clipjax", "open_clip"):
            source = their("open_clip_vit")
            error = refusal(
                "convert", f"--source={source}", f"--target={tmp_path / name}", f"--to={to}"
            )
            assert f"{name}' exists already; choose another --target, or remove it" in error
    assert (tmp_path / "there" / "mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert convert(str(their("open_clip_vit")), str(tmp_path / "empty"), to="open_clip") == 0


def test_nothing_is_left_of_a_target_that_fails(their, tmp_path):
    source = tmp_path / "theirs"
    shutil.copytree(their("open_clip_vit"), source)
    weights = source / "open_clip_model.safetensors"
    for to in ("open_clip", "clipjax"):
        found = open_weights(source)
        assert found.tensors
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size - 8)
        with pytest.raises(UserError, match="open_clip_model"):
            convert(str(source), str(tmp_path / "out"), to=to)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["theirs"]
        shutil.copy(their("open_clip_vit") / weights.name, weights)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to=opnai",), "no checkpoint format 'opnai' (did you mean 'openai'?)"),
        (("--from=opnai",), "no checkpoint format 'opnai' (did you mean 'openai'?)"),
        (("--from=timm",), "does not say which of timm's models it is"),
        (("--dtype=fp16",), "--dtype must be one of float32, bfloat16, float16"),
        (("--size=0",), "The size must be from 1 to 16,384, not 0"),
        (("--size=7",), "cannot be cut into patches of 8 px"),
        (("--length=5000000000",), "The length must be from 1 to 1,000,000"),
        (("--mesh=fsdp",), "--mesh='fsdp' should be AXIS=SIZE"),
        (("--mesh=fdsp=8",), "The mesh has no axis 'fdsp'"),
        (("--to=open_clip", "--mesh=fsdp=8"), "--mesh is for clipjax's own checkpoints"),
        (("--max-shard-size=5GB",), "--max-shard-size is for files of tensors"),
        (
            ("--to=open_clip", "--max-shard-size=big"),
            "'big' is not a valid size; write 5GB or 500MB",
        ),
        (("--tokenizer=words.txt",), "must be a tokenizer.json, a SentencePiece .model"),
        (("--model=ViT-B-33",), "no model variant 'ViT-B-33' (did you mean 'ViT-B-32'?)"),
    ],
)
def test_mistakes(their, tmp_path, refusal, arguments, said):
    source = their("open_clip_vit")
    error = refusal("convert", f"--source={source}", f"--target={tmp_path / 'x'}", *arguments)
    assert said in error
    assert not (tmp_path / "x").exists()


def test_bare_weights_do_not_say_their_activation(their, tmp_path, refusal):
    file = tmp_path / "weights.safetensors"
    shutil.copy(their("open_clip_vit") / "open_clip_model.safetensors", file)
    error = refusal("convert", f"--source={file}", f"--target={tmp_path / 'x'}")
    assert "its activation is not in the weights" in error
    assert "--model=NAME" in error
    config = their("open_clip_vit") / "open_clip_config.json"
    arguments = ("--target=" + str(tmp_path / "ours"), f"--model={config}")
    assert main(["convert", f"--source={file}", *arguments]) == 0
    same(open_source(tmp_path / "ours").params, open_source(their("open_clip_vit")).params)


def test_every_key_that_does_not_fit_is_named(their, tmp_path, refusal):
    folder = tmp_path / "theirs"
    shutil.copytree(their("open_clip_vit"), folder)
    file = folder / "open_clip_model.safetensors"
    tensors = load_file(file)
    del tensors["ln_final.bias"], tensors["visual.proj"]
    tensors["adapter.weight"] = np.zeros(3, np.float32)
    tensors["visual.ln_pre.bias"] = np.zeros(5, np.float32)

    save_file(tensors, file)
    error = refusal("convert", f"--source={folder}", f"--target={tmp_path / 'x'}")
    assert "missing: visual.proj, ln_final.bias" in error
    assert "unknown: adapter.weight" in error
    assert "visual.ln_pre.bias is [5] instead of [36]" in error


def test_towers_of_other_libraries_start_a_run(their):
    """`config.init` takes what `load` takes, one part of a model at a time."""
    source = open_source(their("open_clip_vit"))
    model, shapes = source.config.model, parameter_shapes(source.config.model)
    path = str(their("open_clip_vit"))
    whole = load_pretrained({"init": {"": path}, "model": model}, shapes)
    assert whole.keys() == source.params.keys()
    image = load_pretrained({"init": {"image": path}, "model": model}, shapes)
    assert set(image) == {p for p in source.params if p.startswith("image/")}
    np.testing.assert_array_equal(
        image["image/class_token"], source.params["image/class_token"].read()
    )
    tower = {"text": str(their("hugging_face_dinov2"))}
    with pytest.raises(UserError, match="has no part 'text'"):
        load_pretrained({"init": tower, "model": model}, shapes)


def test_embed_with_a_foreign_checkpoint(their, tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (30, 20), (40, 90, ord(name))).save(tmp_path / f"{name}.png")
    output = tmp_path / "out.npz"
    checkpoint_ = f"--checkpoint={their('hugging_face_dinov2')}"
    assert main(["embed", checkpoint_, f"--images={tmp_path}/*.png", f"--output={output}"]) == 0
    found = np.load(output)
    assert found["image_embedding"].shape == (2, 36)
    assert "logit_scale" not in found


def test_eval_of_a_foreign_checkpoint_with_a_config(their, tmp_path, capsys, refusal):
    """The same numbers as of what convert makes of it."""
    source, converted = their("open_clip_vit"), tmp_path / "converted"
    config = tmp_path / "evals.py"
    config.write_text(
        "from clipjax.defaults import base_config\n\n\ndef get_config():\n    config = base_config()\n"
        "    data = {'kind': 'synthetic', 'size': 16, 'length': 6}\n"
        "    config.evals.means = {'kind': 'tests.evals.own:Means', 'source': data}\n"
        "    config.evals.texts = {'kind': 'retrieval', 'source': data}\n    return config\n"
    )
    output = f"--output={tmp_path / 'out.jsonl'}"
    assert "names no evaluators; name a config" in refusal("eval", f"--checkpoint={source}")
    assert main(["convert", f"--source={source}", f"--target={converted}"]) == 0
    for path in (source, converted):
        given = (f"--checkpoint={path}", f"--config={config}", output)
        assert main(["eval", *given, "--suite=means"]) == 0
    assert "came without a tokenizer" in refusal("eval", *given, "--suite=texts")
    lines = list(map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()))
    assert [line["samples"] for line in lines] == [None, 0]
    assert lines[0]["metrics"] == lines[1]["metrics"]
    assert lines[0]["protocol"] == lines[1]["protocol"]


def test_byte_counts_and_meshes():
    assert byte_count(None) is None
    assert byte_count("5GB") == 5 * 10**9
    assert byte_count("1.5m") == 1_500_000
    assert byte_count("12") == 12
    assert mesh_sizes(None) is None
    assert mesh_sizes("fsdp=4,tensor=2") == {"fsdp": 4, "tensor": 2}


def test_names_on_the_hub(monkeypatch, their, tmp_path):
    """Without a network: what is asked of huggingface_hub, and what is said when it fails."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def download(repository, **how):
        asked.update(how, repository=repository)
        return str(their("hugging_face_clip_gelu"))

    names = ["model.safetensors", "pytorch_model.bin", "config.json"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *a, **k: names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = open_source("hf-hub:openai/clip-vit-base-patch32@main")
    assert source.format == "hugging_face"
    assert asked["repository"] == "openai/clip-vit-base-patch32"
    assert asked["revision"] == "main"
    assert "*.bin" not in asked["allow_patterns"]

    def fail(*args, **kwargs):
        raise OSError("no network\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"cannot be fetched from the hub: no network$"):
        open_source("hf-hub:openai/clip-vit-base-patch32")
    with pytest.raises(UserError, match="write hf-hub:OWNER/NAME"):
        hub.local("hf-hub:clip")


def test_what_is_not_kept_is_said(their):
    assert not [n for n in open_source(their("open_clip_vit")).notes if "Not kept" in n]
    (note,) = (n for n in open_source(their("open_clip_coca")).notes if "Not kept" in n)
    assert "text_decoder." in note
    assert note.endswith("more.")


def test_dinov2_s_own_preprocessing(their, tmp_path):
    """Its files resize to 256, crop 224, and hold the positions of 518: here 28 of 32, and 24 (the golden's)."""
    folder = tmp_path / "theirs"
    shutil.copytree(their("hugging_face_dinov2"), folder)
    described = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 16, "width": 16},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    source = open_source(folder)
    assert source.config.model.image.size == 24
    assert source.config.preprocess.crop_fraction == 0.5
    assert any("--size=16 resamples the positions" in note for note in source.notes)
    model = clipjax.load(folder, size=16)
    assert model.params["image"]["position_embedding"].shape == (5, 36)
    img = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    resized = img.resize((48, 32), Image.Resampling.BICUBIC).crop((16, 8, 32, 24))
    np.testing.assert_array_equal(model.encoder.pixels(img), np.asarray(resized))


def test_timm_s_share_of_the_crop_comes_back(their, tmp_path):
    folder = tmp_path / "theirs"
    shutil.copytree(their("timm_vit"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["crop_pct"] = 0.7
    (folder / "config.json").write_text(json.dumps(config))
    source = open_source(folder)
    assert source.config.preprocess.crop_fraction == 24 / 34  # 24 / 0.7, rounded down
    assert convert(str(folder), str(tmp_path / "back"), to="timm") == 0
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert back["pretrained_cfg"]["crop_pct"] == 0.7
    assert open_source(tmp_path / "back").config.preprocess == source.config.preprocess
    # Another size keeps the pixels that are resized to, not the number that was written.
    assert convert(str(folder), str(tmp_path / "large"), to="timm", size=48) == 0
    large = open_source(tmp_path / "large").config.preprocess.crop_fraction
    assert round(48 / large) == round(48 / (24 / 34))


@pytest.mark.parametrize("name", ["timm_dinov2", "timm_dinov2_giant", "timm_dinov2_reg4"])
def test_dinov2_s_own_files(their, tmp_path, name):
    """The authors' names and their position of the class token, made of timm's port, give the port's embeddings."""
    golden, folder = GOLDENS[name], their(name)
    tensors = load_file(folder / "model.safetensors")
    renamed = {"reg_token": "register_tokens"}
    if name.endswith("giant"):
        renamed |= {
            key: key.replace(".fc1.", ".w12.").replace(".fc2.", ".w3.")
            for key in tensors
            if ".mlp." in key
        }
    tensors = {renamed.get(key, key): array for key, array in tensors.items()}
    tensors["mask_token"] = np.ones((1, 36), np.float32)
    if name.endswith("reg4"):
        position = np.full((1, 1, 36), 0.25, np.float32)
        tensors["cls_token"] = tensors["cls_token"] - position
        tensors["pos_embed"] = np.concatenate([position, tensors["pos_embed"]], axis=1)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "theirs").mkdir()
    save_file(tensors, tmp_path / "theirs" / "model.safetensors")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    model = clipjax.load(tmp_path / "theirs")
    found = model.encode_pixels(golden.batch()["image"])
    assert np.abs(found - golden.embeddings()["image_embedding"]).max() <= 1e-5
    assert convert(str(tmp_path / "theirs"), str(tmp_path / "back"), to="timm") == 0
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == tensors.keys()
    for key in tensors.keys() - {"mask_token"}:
        np.testing.assert_array_equal(back[key], tensors[key], err_msg=key)
