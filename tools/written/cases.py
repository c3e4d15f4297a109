"""The models that are written: every parity golden, models of clipjax's own, and changes on the way."""

import base64
import dataclasses
import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from clipjax import checkpoint
from clipjax.config import to_json
from clipjax.convert import orbax, timm_models, timm_names
from clipjax.convert.files import Tensor
from clipjax.convert.formats import Options
from clipjax.convert.shapes import parameter_shapes
from clipjax.data.presets import PRESETS, Preset
from clipjax.data.tokenizers import make_tokenizer
from clipjax.defaults import base_config
from clipjax.models import make_model, model_section, region_section, text_section
from clipjax.models.variants import model_config
from clipjax.workdir import versions
from tests.convert import parity_weights
from tests.convert.parity_cases import GOLDENS, Golden, lay_out

REPOSITORY = Path(__file__).resolve().parents[2]
TOKENIZERS = REPOSITORY / "tests" / "data" / "golden" / "tokenizers.json.gz"

# open_clip knows a trunk of timm by its name only: these are tiny ones, and timm gets to know them, too.
TIMM_NAMES = {
    name: {
        "architecture": real,
        "model_args": dict(
            img_size=24, patch_size=8, embed_dim=36, depth=2, num_heads=3, mlp_ratio=ratio
        ),
    }
    for name, real, ratio in (
        ("vit_nano_patch8_siglip_24", "vit_base_patch16_siglip_224", 100 / 36),
        ("vit_nano_patch8_siglip_gap_24", "vit_base_patch16_siglip_gap_224", 100 / 36),
        ("vit_so400nano_patch8_siglip_24", "vit_so400m_patch16_siglip_256", 100 / 36),
        ("vit_nano_patch8_dinov2", "vit_base_patch14_dinov2", 3),
    )
}


@dataclass(frozen=True)
class Origin:
    """A model before it is converted.

    Attributes:
      name: of the case.
      put: writes its files into a folder; returns the path that a user would give.
      options: what the user says beside the files.
      timm: tiny timm models that its config names: name -> architecture and arguments.
      change: arguments of `convert` on the way to clipjax's checkpoint: dtype, size, length.
      more: arguments of `convert` on the way back.
      targets: formats to write; None: all.
      batch: inputs, float32 images and ids; None: made for the model's sizes.
      said: of a mixture of experts, what its file does not say.
    """

    name: str
    put: Callable[[Path], Path]
    options: Options = field(default_factory=Options)
    timm: Mapping[str, Any] = field(default_factory=dict)
    change: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] | None = None
    batch: Callable[[], dict[str, np.ndarray]] | None = None
    said: Mapping[str, Any] = field(default_factory=dict)


def origins() -> list[Origin]:
    """All of them."""
    return [*map(_golden, GOLDENS.values()), *_changed(), *_own()]


def _golden(golden: Golden, suffix: str = "", **more: Any) -> Origin:
    return Origin(
        golden.name + suffix,
        lambda folder: lay_out(golden, folder),
        golden.options(),
        golden.data.get("timm") or {},
        batch=None if {"size", "length"} & more.get("change", {}).keys() else golden.batch,
        said=golden.data.get("moe") or {},
        **more,
    )


def _changed() -> list[Origin]:
    """Another dtype, size or length, and weights in several files."""
    found = []
    for name, target in (
        ("open_clip_vit", "open_clip"),
        ("open_clip_siglip", "open_clip"),
        ("open_clip_xlm_roberta", "open_clip"),
        ("hugging_face_clip_quick_gelu", "hugging_face"),
        ("hugging_face_siglip", "hugging_face"),
        ("hugging_face_bert", "hugging_face"),
        ("timm_vit", "timm"),
        ("openai_vit", "openai"),
        ("big_vision_siglip", "big_vision"),
    ):
        for dtype in ("bfloat16", "float16"):
            found.append(
                _golden(GOLDENS[name], f"_{dtype}", change={"dtype": dtype}, targets=(target,))
            )
    for name in ("hugging_face_clip_quick_gelu", "hugging_face_siglip", "hugging_face_dinov2"):
        found.append(
            _golden(
                GOLDENS[name],
                "_in_shards",
                more={"max_shard_bytes": 50_000},
                targets=("hugging_face",),
            )
        )
    for name in (
        "open_clip_vit",
        "open_clip_eva02_base",
        "hugging_face_clip_gelu",
        "hugging_face_siglip",
        "hugging_face_dinov2",
        "hugging_face_dinov2_registers",
        "timm_vit",
        "timm_dinov2_reg4",
        "openai_vit",
        "openai_resnet",
        "big_vision_siglip",
    ):
        golden = GOLDENS[name]
        size = golden.data["inputs"]["images"]["shape"][1]
        size += 32 if "resnet" in name else 16
        change: dict[str, Any] = {"size": size}
        if "text" in golden.data["inputs"]:
            change["length"] = 13
        found.append(_golden(golden, f"_{size}px", change=change))
    return found


def _own() -> list[Origin]:
    """Models as clipjax itself trains them, of tiny sizes, with tokenizers."""
    clip = {"kind": "clip_bpe"}
    plain = _clip("ViT-B-32", heads=4)
    # OpenAI's heads are 64 wide, and its activation is another one.
    quick = _clip("ViT-B-32-quickgelu", width=128, heads=2)
    found = [
        _ours("clipjax_clip", plain, PRESETS["clip"], clip),
        _ours("clipjax_clip_quickgelu", quick, PRESETS["clip"], clip),
        _ours("clipjax_clip_other_pixels", plain, PRESETS["veclip"], clip),
        _ours("clipjax_clip_squash", plain, PRESETS["siglip"], clip),
        _ours("clipjax_clip_whitespace", plain, PRESETS["clip"], clip | {"clean": "whitespace"}),
        _ours(
            "clipjax_clip_canonicalize", plain, PRESETS["clip"], clip | {"clean": "canonicalize"}
        ),
    ]
    for kind in ("siglip", "siglip2"):
        config, file, count = _vocabulary(kind)
        bilinear = PRESETS["siglip"]._replace(interpolation="bilinear")
        found += [
            _ours(f"clipjax_{kind}", _siglip(count), bilinear, config, file),
            _ours(
                f"clipjax_{kind}_exact_gelu",
                _siglip(count, "gelu"),
                bilinear,
                config,
                file,
            ),
        ]
    found.append(
        _ours("clipjax_siglip_clip_bpe", _siglip(49408, length=24), PRESETS["siglip"], clip)
    )
    config, file, count = _vocabulary("siglip2")
    naflex = _siglip(count, length=64)  # transformers' processor pads to 64, whatever the files say
    naflex.image.update(positions="naflex", size=32)
    preset = PRESETS["siglip"]._replace(resize="naflex", interpolation="bilinear")
    found.append(_ours("clipjax_naflex", naflex, preset, config, file))
    for kind, pools in (("bert", ("mean", "class", "pooler")), ("xlm_r", ("mean",))):
        config, file, count = _vocabulary(kind)
        for pool in pools:
            model = _bert(count, config["pad_id"], pool)
            found.append(_ours(f"clipjax_{kind}_{pool}", model, None, config, file))
    return found + _regions()


def _regions() -> list[Origin]:
    """Region models as plain CLIPs: what is written is held against embeddings of the whole model."""
    models = {
        "class": _clip("ViT-B-16"),
        "quickgelu": _clip("ViT-B-16-quickgelu", width=128, heads=2),
        "map": _clip("ViT-B-16"),
    }
    models["map"].image = _siglip(1000, "gelu").image
    more = {"left_out": ("regions",)}
    found = []
    for name, model in models.items():
        model.update(kind="region_dual_encoder", regions=region_section())
        preset = PRESETS["clip"]._replace(resize="longest" if name == "map" else "shortest")
        origin = _ours(f"clipjax_regions_{name}", model, preset, {"kind": "clip_bpe"})
        found.append(dataclasses.replace(origin, more=more))
        tower = {"left_out": ("regions", "text")}
        found.append(dataclasses.replace(origin, name=f"{origin.name}_image", more=tower))
    return found


def _clip(name: str, width: int = 64, heads: int = 4) -> ConfigDict:
    """A named CLIP with smaller towers."""
    model = model_config(name)
    for tower in (model.image, model.text):
        tower.update(width=width, depth=2, heads=heads)
    model.image.update(size=48, patch=16)
    model.embed_dim = 32
    return model


def _siglip(vocab_size: int, activation: str = "gelu_tanh", length: int = 16) -> ConfigDict:
    """SigLIP with the image tower of `TIMM_NAMES`."""
    model = model_config("ViT-B-16-SigLIP")
    sizes = dict(width=36, depth=2, heads=3, mlp_ratio=100 / 36, activation=activation)
    model.image.update(size=24, patch=8, **sizes)
    model.text.update(length=length, vocab_size=vocab_size, **sizes | dict(heads=4))
    model.embed_dim = 36
    return model


def _bert(vocab_size: int, pad_id: int, pool: str) -> ConfigDict:
    offset = pad_id + 1 if pad_id else 0
    text = text_section(
        "bert",
        length=24,
        vocab_size=vocab_size,
        width=36,
        depth=2,
        heads=3,
        mlp_dim=100,
        max_positions=24 + offset,
        position_offset=offset,
        type_vocab=1 if offset else 2,
        pad_id=pad_id,
        pool=pool,
        norm_epsilon=1e-5 if offset else 1e-12,
    )
    return model_section(text=text, kind="text_encoder", embed_dim=36, text_projection="none")


def _vocabulary(kind: str) -> tuple[dict[str, Any], bytes, int]:
    """(config section, file, number of ids) of a tiny vocabulary of a family."""
    golden = json.loads(gzip.decompress(TOKENIZERS.read_bytes()))[kind]
    highest = max(max(row) for rows in golden["rows"].values() for row in rows)
    return golden["config"], base64.b64decode(golden["file"]), max(1000, highest + 1)


def _ours(
    name: str,
    model: ConfigDict,
    preset: Preset | None,
    tokenizer: dict[str, Any],
    file: bytes | None = None,
) -> Origin:
    def put(folder: Path) -> Path:
        config = base_config()
        config.model = ConfigDict(model.to_dict(), type_safe=False)
        if preset is not None:
            preset.apply(config)
        section = dict(tokenizer)
        if file is not None:
            end = ".model" if tokenizer["kind"] == "sentencepiece" else ".json"
            source = folder.with_name(f"{folder.name}_tokenizer{end}")
            source.write_bytes(file)
            section["source"] = str(source)
        made = make_tokenizer(section, model.text.length)
        meta = {"samples": 0, "config": json.loads(to_json(config)), "versions": versions()}
        packed = checkpoint.pack_tokenizer(made)
        orbax.write(epath.Path(folder), parameters(model), meta, packed)
        return folder

    return Origin(name, put)


def parameters(model: ConfigDict) -> dict[str, Tensor]:
    """Path -> parameter: numbers that depend on the path, so that no two parts are alike."""
    found = {}
    for path, leaf in flatten_dict(parameter_shapes(model), sep="/").items():
        numbers = parity_weights.uniform(path, int(np.prod(leaf.shape))).reshape(leaf.shape)
        end = path.split("/")[-1]
        centre = {"scale": 1.0, "logit_scale": 2.5, "logit_bias": -8.0}.get(end, 0.0)
        width = 0.2 if end.endswith("embedding") else 0.5
        array = (centre + width * numbers).astype(np.float32)
        found[path] = Tensor(array.shape, array.dtype, lambda array=array: array)
    return found


def batch_for(model: Mapping[str, Any], tokenizer: Any) -> dict[str, np.ndarray]:
    """Inputs of a model's sizes: images, and ids of texts if there is a tokenizer, else of none in particular."""
    batch: dict[str, np.ndarray] = {}
    image, text = model.get("image"), model.get("text")
    if image is not None and image.get("positions") == "naflex":
        grid = image["size"] // image["patch"]
        shapes = np.array([[grid, grid], [2, grid], [grid - 1, 3]], np.int32)
        count, patch = grid * grid, image["patch"]
        patches = parity_weights.pixels("patches", [3, count, 3 * patch * patch])
        mask = np.arange(count) < shapes.prod(1)[:, None]
        batch |= {"image": patches * mask[:, :, None].astype(np.float32), "image_shape": shapes}
    elif image is not None:
        size = image["size"]
        batch["image"] = parity_weights.pixels(f"images of {size}", [3, size, size, 3])
    if text is not None:
        batch["text"] = _ids(text, tokenizer)
    return batch


# None that a tokenizer would repair: not all libraries do (docs/tokenizers.md).
TEXTS = (
    "A photo of a dog, isn't it? We're SURE they'll say so!",
    "two cats & 3,141 mice on a mat (1999)",
    "ein größerer Fuchs — über den Zaun, naïve café",
    "犬が好き 🐶 emoji",
    "a very long text " * 30,
)


def _ids(text: Mapping[str, Any], tokenizer: Any) -> np.ndarray:
    from clipjax.data.tokenizers.absent import Absent

    if tokenizer is not None and not isinstance(tokenizer, Absent):
        return tokenizer(list(TEXTS))
    length, pad = text["length"], text.get("pad_id", 0)
    end = min(text.get("end_token", 49407), text["vocab_size"] - 1)
    rows = [[3, 4, 5, end], [9, 8, 11, 12, 13, end], [*range(3, 2 + length), end]]
    return np.array([row + [pad] * (length - len(row)) for row in rows], np.int32)


def embed(
    model: ConfigDict, params: Mapping[str, Tensor], batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What clipjax's model makes of a batch in float32: the embeddings that it has."""
    from flax.traverse_util import unflatten_dict

    section = ConfigDict(model.to_dict(), type_safe=False)
    section.dtype = "float32"
    module = make_model(section)
    arrays = {path: tensor.read().astype(np.float32) for path, tensor in params.items()}
    tree = unflatten_dict(arrays, sep="/")
    outputs = jax.jit(lambda p, b: module.apply({"params": p}, b))(tree, dict(batch))
    fields = ("image_embedding", "text_embedding")
    return {name: np.asarray(outputs[name]) for name in fields if name in outputs}


def known_to_timm(tiny: Mapping[str, Any], patch: Any) -> None:
    """Makes the tiny timm models known to clipjax, by a `pytest.MonkeyPatch`."""
    known, tiny = timm_models.arguments, {**TIMM_NAMES, **tiny}

    def arguments(name: str, given: Any = None) -> dict[str, Any]:
        if name in tiny:
            entry = tiny[name]
            return known(entry["architecture"], {**entry["model_args"], **(given or {})})
        return known(name, given)

    patch.setattr(timm_models, "arguments", arguments)
    patch.setattr(timm_names, "NAMES", (*timm_names.NAMES, *TIMM_NAMES))
