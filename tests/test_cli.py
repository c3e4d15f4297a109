"""The commands from end to end on one tiny run."""

import importlib.util
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipjax
from clipjax import rules
from clipjax.cli import main
from clipjax.commands import embed as embed_command

TINY = str(Path(__file__).parent / "tiny_config.py")
CLIP = str(Path(__file__).parents[1] / "configs" / "clip.py")


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for name in ("b.png", "a.png", "deep/c.png"):
        pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_bytes("a cat\r\nein Höhlenbär\n  spaces stay \n".encode())
    return file


def refusal(capsys, *arguments):
    """The one sentence on standard error of a command that must fail with status 2."""
    assert main(list(map(str, arguments))) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("\n") == 1
    return error


def test_eval_equals_the_results_in_the_run(tiny_run, tmp_path, capsys):
    output = tmp_path / "results.jsonl"
    assert main(["eval", f"--checkpoint={tiny_run}", f"--output={output}"]) == 0
    printed = capsys.readouterr().out
    lines = {line["suite"]: line for line in map(json.loads, output.read_text().splitlines())}
    wanted = json.loads((tiny_run / "results.json").read_text())
    assert set(lines) == set(wanted) == {"numbers", "category"}
    for name, line in lines.items():
        assert line["samples"] == wanted[name]["samples"] == 32
        assert line["metrics"] == wanted[name]["metrics"]
        for key, value in wanted[name]["protocol"].items():
            assert line["protocol"][key] == value
        wanted_fit = {"resize": "squash", "interpolation": "bicubic", "crop_fraction": 1.0}
        assert line["protocol"]["preprocess"] == wanted_fit
        assert line["protocol"]["tokenizer"]["kind"] == "clip_bpe"
        assert line["protocol"]["dtype"] == "float32"
        for metric, value in line["metrics"].items():
            assert metric in printed
            assert f"{100 * value:.2f}" in printed


def test_eval_of_one_suite_appends(tiny_run, tmp_path, capsys):
    output = tmp_path / "results.jsonl"
    output.write_text('{"kept": true}\n')
    older = tiny_run / "checkpoints" / "16"
    assert main(["eval", f"--checkpoint={older}", "--suite=numbers", f"--output={output}"]) == 0
    kept, line = map(json.loads, output.read_text().splitlines())
    assert kept == {"kept": True}
    assert (line["suite"], line["samples"]) == ("numbers", 16)
    assert "category" not in capsys.readouterr().out


def write_evals(folder, entries):
    file = folder / "evals.py"
    file.write_text(
        "from clipjax.defaults import base_config\n\n\ndef get_config():\n"
        f"    config = base_config()\n    config.evals = {entries!r}\n    return config\n"
    )
    return f"--config={file}"


def test_eval_with_a_config(tiny_run, tmp_path, capsys):
    noise = {"kind": "synthetic", "size": 16, "length": 12}
    config = write_evals(tmp_path, {"numbers": {"kind": "retrieval", "source": noise}})
    given = [f"--checkpoint={tiny_run}", f"--output={tmp_path / 'out.jsonl'}"]
    assert main(["eval", *given, config]) == 0
    # Where the path is long, the title goes on in a second line.
    assert "at 32 samples" in " ".join(capsys.readouterr().out.split())
    (line,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (
        line["metrics"] == json.loads((tiny_run / "results.json").read_text())["numbers"]["metrics"]
    )
    assert "no evaluator 'category'" in refusal(capsys, "eval", *given, config, "--suite=category")
    gone = {"kind": "retrieval", "source": {"kind": "tars", "shards": "nowhere/*.tar"}}
    config = write_evals(tmp_path, {"numbers": gone})
    assert "nowhere" in refusal(capsys, "eval", *given, config)


def test_eval_overrides_settings_of_evaluators(tiny_run, tmp_path):
    output = tmp_path / "out.jsonl"
    given = ["eval", f"--checkpoint={tiny_run}", "--suite=numbers", f"--output={output}"]
    assert main([*given, "--config.evals.numbers.source.length=5"]) == 0
    assert json.loads(output.read_text())["protocol"]["records"] == 5


def test_eval_refusals(tiny_run, tmp_path, capsys):
    assert "did you mean 'numbers'" in refusal(
        capsys, "eval", f"--checkpoint={tiny_run}", "--suite=number"
    )
    assert "nowhere" in refusal(capsys, "eval", "--checkpoint=nowhere")
    assert "is not a checkpoint" in refusal(capsys, "eval", f"--checkpoint={tmp_path}")
    missing = tmp_path / "no" / "folder.jsonl"
    assert "cannot be written" in refusal(
        capsys, "eval", f"--checkpoint={tiny_run}", f"--output={missing}"
    )
    given = ("eval", f"--checkpoint={tiny_run}")
    assert "reads only `evals`" in refusal(capsys, *given, "--config.seed=1")
    assert "did you mean 'numbers'" in refusal(capsys, *given, "--config.evals.number.chunk=1")


def test_embed_equals_the_library(tiny_run, photos, texts, tmp_path, capsys):
    output = tmp_path / "out.npz"
    assert (
        main(
            [
                "embed",
                f"--checkpoint={tiny_run}",
                f"--images={photos}/**/*.png",
                f"--texts={texts}",
                f"--output={output}",
            ]
        )
        == 0
    )
    assert "3 images and 3 texts, 8 numbers each" in capsys.readouterr().out
    with np.load(output) as file:
        found = dict(file)
    paths = [str(photos / name) for name in ("a.png", "b.png", "deep/c.png")]
    lines = ["a cat", "ein Höhlenbär", "  spaces stay "]
    assert found["image_path"].tolist() == paths
    assert found["text"].tolist() == lines
    model = clipjax.load(tiny_run)
    assert found["image_embedding"].dtype == found["text_embedding"].dtype == np.float32
    np.testing.assert_allclose(found["image_embedding"], model.encode_image(paths), atol=1e-6)
    np.testing.assert_allclose(found["text_embedding"], model.encode_text(lines), atol=1e-6)
    assert found["logit_scale"] == np.float32(model.logit_scale)
    assert found["logit_bias"] == np.float32(model.params["logit_bias"])
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_embed_reads_images_in_blocks(tiny_run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(embed_command, "BLOCK", 2)
    pattern, output = f"{photos}/**/*.png", tmp_path / "out.npz"
    assert embed_command.embed(str(tiny_run), pattern, None, str(output)) == 0
    with np.load(output) as file:
        found = dict(file)
    assert "text" not in found
    wanted = clipjax.load(tiny_run).encode_image(found["image_path"].tolist())
    np.testing.assert_allclose(found["image_embedding"], wanted, atol=1e-6)


def test_embed_and_bad_images(tiny_run, photos, tmp_path, capsys):
    (photos / "aa.png").write_bytes(b"not an image")
    (photos / "ab.png").write_bytes(b"")
    output = tmp_path / "out.npz"
    command = ["embed", f"--checkpoint={tiny_run}", f"--images={photos}/*", f"--output={output}"]
    error = refusal(capsys, *command)
    assert "aa.png" in error
    assert "--skip-bad" in error
    assert not output.exists()
    assert main([*command, "--skip-bad"]) == 0
    captured = capsys.readouterr()
    assert "aa.png" in captured.err
    assert "ab.png" in captured.err
    assert "2 of 4 images could not be read" in captured.err
    with np.load(output) as file:
        assert [Path(p).name for p in file["image_path"]] == ["a.png", "b.png"]
        assert file["image_embedding"].shape == (2, 8)


def test_embed_refusals(tiny_run, photos, texts, tmp_path, capsys):
    output = tmp_path / "out.npz"
    given = ["embed", f"--checkpoint={tiny_run}"]
    assert "--images" in refusal(capsys, *given, f"--output={output}")
    images = f"--images={photos}/*.png"
    assert "no file" in refusal(capsys, *given, "--images=none/*.png", f"--output={output}")
    assert ".npz or .parquet" in refusal(capsys, *given, images, "--output=out.csv")
    assert "cannot be written" in refusal(capsys, *given, images, f"--output={tmp_path}/no/o.npz")
    taken = tmp_path / "taken.npz"
    taken.write_bytes(b"precious")
    assert "exists already" in refusal(capsys, *given, images, f"--output={taken}")
    assert taken.read_bytes() == b"precious"

    lines = tmp_path / "lines.txt"
    for content, message in {
        b"one\n \nthree\n": "Line 2",
        b"": "no lines",
        b"caf\xe9\n": "not UTF-8",
    }.items():
        lines.write_bytes(content)
        error = refusal(capsys, *given, f"--texts={lines}", f"--output={output}")
        assert message in error
        assert "lines.txt" in error
    error = refusal(capsys, *given, f"--texts={tmp_path}/gone.txt", f"--output={output}")
    assert "gone.txt" in error
    assert not output.exists()


def test_embed_to_parquet(tiny_run, photos, texts, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out.parquet"
    command = [
        *("embed", f"--checkpoint={tiny_run}", f"--images={photos}/*.png"),
        *(f"--texts={texts}", f"--output={output}"),
    ]
    if importlib.util.find_spec("pyarrow") is None:
        assert "pip install pyarrow" in refusal(capsys, *command)
        return
    import pyarrow.parquet

    assert main(command) == 0
    table = pyarrow.parquet.read_table(output)
    assert table["kind"].to_pylist() == ["image"] * 2 + ["text"] * 3
    model = clipjax.load(tiny_run)
    sources = table["source"].to_pylist()
    wanted = [model.encode_image(sources[:2]), model.encode_text(sources[2:])]
    found = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_allclose(found, np.concatenate(wanted), atol=1e-6)
    scale = float(table.schema.metadata[b"logit_scale"])
    assert math.isclose(scale, model.logit_scale, rel_tol=1e-6)


def show(capsys, *arguments):
    assert main(["show", *arguments]) == 0
    text = capsys.readouterr().out
    return text, dict(re.findall(r"^ *([A-Za-z][A-Za-z -]*?)  +(\S.*)$", text, re.MULTILINE))


def test_show_counts_what_a_run_has(tiny_run, capsys):
    text, found = show(capsys, f"--config={TINY}")
    params = clipjax.load(tiny_run).params
    flat = rules.paths(params)
    total = sum(leaf.size for leaf in flat.values())
    assert found["parameters"].startswith(f"{total:,} ")
    assert found["trained"] == f"{total:,}"
    assert found["frozen"] == "0"
    assert found["steps"] == "4 of 8 samples"
    assert found["epochs"] == "1.333 of 24 records"
    for path, leaf in flat.items():
        (row,) = re.findall(rf"│ {re.escape(path)} +│ (.*?) +│ (\w+) +│.*│ +([\d,]+) │", text)
        assert row == (str(leaf.shape), "float32", f"{leaf.size:,}")
    towers = re.findall(r"total of (\w+).*│ +([\d,]+) │", text)
    sizes = {name: int(size.replace(",", "")) for name, size in towers}
    assert sizes["shared"] == 2
    assert sizes["image"] == sum(x.size for p, x in flat.items() if p.startswith("image"))
    assert sum(sizes.values()) == total
    # Adam holds two moments of every parameter and a counter.
    assert found["optimizer state"] == f"{8 * total / 1e6:.4g} MB"
    assert found["averaged parameters"] == f"{4 * total / 1e6:.4g} MB"
    resolved = json.loads(text[text.index("{") : text.index("\nParameters")])
    assert resolved["total_samples"] == 32
    assert resolved["checkpoint"]["every"] == 16


def test_show_counts_frozen_layers_and_shardings(capsys):
    text, found = show(
        capsys,
        f"--config={CLIP}:ViT-B-32",
        "--config.mesh.data=4",
        "--config.mesh.fsdp=8",
        "--config.optim.freeze=(('image/transformer/blocks/[0-8]/.*', True), ('.*', False))",
    )
    layer = 12 * 768**2 + 13 * 768
    assert found["parameters"].startswith("151,277,313 ")
    assert found["frozen"] == f"{9 * layer:,}"
    assert found["trained"] == f"{151_277_313 - 9 * layer:,}"
    assert re.search(r"image/stem/kernel .*│ -, -, -, fsdp +│ yes", text)
    assert re.search(r"image/norm_post/scale .*│ whole ", text)
    assert "shown for 32" in text
    assert found["warm-up"] == "327,680,000 samples"


@pytest.mark.parametrize(
    ("name", "flops", "parameters"),
    [("ViT-bigG-14", 1066e9, 2540), ("ViT-SO400M-14-SigLIP-384", 723e9, 878)],
)
def test_show_of_large_variants(name, flops, parameters, capsys):
    """Published: open_clip's model_profile.csv."""
    _, found = show(capsys, f"--config={CLIP}:{name}")
    assert round(int(found["parameters"].split()[0].replace(",", "")) / 1e6) == parameters
    units = {"T": 1e12, "G": 1e9}
    number, unit = found["forward FLOPs a pair"].split()
    assert math.isclose(float(number) * units[unit[0]], flops, rel_tol=0.002)
    number, unit = found["training FLOPs a sample"].split()
    assert math.isclose(float(number) * units[unit[0]], 3 * flops, rel_tol=0.01)


def test_show_refusals(capsys):
    assert "ViT-B-16" in refusal(capsys, "show", f"--config={CLIP}:ViT-B-61")
    assert "did you mean 'depth'" in refusal(
        capsys, "show", f"--config={CLIP}", "--config.model.image.detph=2"
    )
    assert "config.mesh" in refusal(capsys, "show", f"--config={CLIP}", "--config.mesh.fsdp=3")
