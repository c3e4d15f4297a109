"""transformers' folders: `config.json` and `model.safetensors`, written by save_pretrained, read by from_pretrained.

transformers 5 saves a tower alone without the prefix (`embeddings.…`) that transformers 4 gave it
(`vision_model.embeddings.…`), and nearly all published files are of the latter kind: cases with `_v4` have it, and the
`position_ids` that were saved then. from_pretrained reads both.
"""

import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
import transformers

from parity import golden
from tests.convert import parity_weights

VOCABULARY, CONTEXT = 45, 9
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
VISION = {
    "hidden_size": 36,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 24,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 84,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
LEGACY_IDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
# An end that is not the largest id, and padding that is the end once more, as CLIPTokenizer's is.
NEW_IDS = {"bos_token_id": 3, "eos_token_id": 7, "pad_token_id": 7}
NEW_TEXT = golden.padded([[3, 30, 12, 7], [3, 9, 7], [3, *range(20, 27), 7]], CONTEXT, 7)

Run = Callable[[torch.nn.Module, dict[str, Any]], dict[str, Any]]


def _pixel_values(inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {"pixel_values": golden.nchw(inputs["images"])}


def pair(model: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs of a dual encoder."""
    imgs = naflex(inputs) if "patches" in inputs else _pixel_values(inputs)
    found = model(input_ids=torch.tensor(inputs["text"]), **imgs)
    bias = getattr(model, "logit_bias", None)
    return golden.outputs(found.image_embeds, found.text_embeds, model.logit_scale, bias)


def naflex(inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Arguments of a NaFlex tower; patches beyond an image are zeros, as the image processor pads."""
    return {
        "pixel_values": torch.from_numpy(parity_weights.patches({"inputs": inputs})),
        "pixel_attention_mask": torch.tensor(inputs["patch_mask"]),
        "spatial_shapes": torch.tensor(inputs["spatial_shapes"]),
    }


def image_tower(model: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs of an image tower alone, with the tokens of the first image."""
    found = model(**_pixel_values(inputs))
    pooled = getattr(found, "image_embeds", None)
    pooled = found.pooler_output if pooled is None else pooled
    return golden.outputs(image=pooled, pooled=pooled, tokens=found.last_hidden_state[:1])


def text_tower(model: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs of CLIP's text tower alone, with the tokens of the first text."""
    found = model(input_ids=torch.tensor(inputs["text"]))
    return golden.outputs(
        text=found.text_embeds, pooled=found.text_embeds, tokens=found.last_hidden_state[:1]
    )


def masked_text_tower(model: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs of BERT's kind: mean over the tokens that the mask has, the first token, and the pooler's vector."""
    mask_BxL = torch.tensor(inputs["text_mask"])
    found = model(input_ids=torch.tensor(inputs["text"]), attention_mask=mask_BxL)
    tokens_BxLxW = found.last_hidden_state
    mean_BxW = (tokens_BxLxW * mask_BxL[:, :, None]).sum(1) / mask_BxL.sum(1, keepdim=True)
    return golden.outputs(
        text=mean_BxW, mean=mean_BxW, cls=tokens_BxLxW[:, 0], pooled=found.pooler_output
    )


def read(folder: pathlib.Path) -> dict[str, dict[str, torch.Tensor]]:
    """{file: {key: tensor}} of the weights' files in a folder, in the files' order."""
    return {
        path.name: {
            key: value
            for tensors in [safetensors.torch.load_file(path)]
            for key, value in ((key, tensors[key]) for key in golden.safetensors_order(path))
        }
        for path in sorted(folder.glob("*.safetensors"))
    }


def case(
    model_class: type,
    config: transformers.PretrainedConfig,
    inputs: dict[str, Any],
    run: Run,
    rename: Callable[[str], str] = str,
    extra: dict[str, torch.Tensor] | None = None,
    shard: str = "1GB",
    processor: Any = None,
) -> dict[str, Any]:
    """One golden: `rename` and `extra` (integer buffers) turn the file into what an older version wrote."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model_class(config).save_pretrained(folder, max_shard_size=shard)
        if processor is not None:
            processor.save_pretrained(folder)
        tensors: golden.Tensors = {}
        for file, state in read(folder).items():
            renamed = {rename(key): value for key, value in state.items()} | (extra or {})
            described = golden.describe(renamed)
            tensors |= described
            filled = golden.filled(described)
            safetensors.torch.save_file(filled, folder / file, metadata={"format": "pt"})
        model, info = model_class.from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager"
        )
        wrong = {kind: keys for kind, keys in info.items() if keys}
        if wrong:
            raise ValueError(f"{model_class.__name__} did not take all weights: {wrong}")
        files = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        return {
            "library": golden.versions("transformers"),
            "architecture": f"transformers.{model_class.__name__}",
            "files": files,
            "weights_file": INDEX if INDEX in files else WEIGHTS,
            "tensors": tensors,
            "inputs": inputs,
            "outputs": run(model.eval(), inputs),
        }


def _image_inputs() -> dict[str, Any]:
    return {"images": golden.images(3, VISION["image_size"])}


def _clip(activation: str, ids: dict, text: list[list[int]], **more: Any) -> dict[str, Any]:
    config = transformers.CLIPConfig(
        vision_config=VISION | {"hidden_act": activation},
        text_config=TEXT | ids | {"hidden_act": activation},
        projection_dim=28,
    )
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    )
    inputs = _image_inputs() | {"text": text}
    return case(transformers.CLIPModel, config, inputs, pair, processor=processor, **more)


def clip_v4() -> dict[str, Any]:
    """CLIPModel with the `position_ids` that transformers saved until 4.30."""
    extra = {
        "text_model.embeddings.position_ids": torch.arange(CONTEXT)[None],
        "vision_model.embeddings.position_ids": torch.arange(10)[None],
    }
    text = golden.clip_text(VOCABULARY, CONTEXT)
    return _clip("quick_gelu", LEGACY_IDS, text, extra=extra)


def _clip_vision(projection: bool, v4: bool = False) -> dict[str, Any]:
    name = "CLIPVisionModelWithProjection" if projection else "CLIPVisionModel"
    config = transformers.CLIPVisionConfig(**VISION, projection_dim=28)
    return case(
        getattr(transformers, name),
        config,
        _image_inputs(),
        image_tower,
        rename="vision_model.{}".format if v4 else str,
        extra={"vision_model.embeddings.position_ids": torch.arange(10)[None]} if v4 else None,
    )


def clip_text() -> dict[str, Any]:
    """A projected text tower alone; its end is the largest id (`eos_token_id` 2)."""
    config = transformers.CLIPTextConfig(**TEXT, **LEGACY_IDS, projection_dim=28)
    inputs = {"text": golden.clip_text(VOCABULARY, CONTEXT)}
    return case(transformers.CLIPTextModelWithProjection, config, inputs, text_tower)


def _siglip(text: dict[str, Any], **vision: Any) -> dict[str, Any]:
    ids = {"pad_token_id": 1, "bos_token_id": 43, "eos_token_id": 44}
    config = transformers.SiglipConfig(vision_config=VISION | vision, text_config=TEXT | ids | text)
    processor = transformers.SiglipImageProcessor(size={"height": 24, "width": 24})
    inputs = _image_inputs() | {"text": golden.siglip_text(CONTEXT, pad=1)}
    return case(transformers.SiglipModel, config, inputs, pair, processor=processor)


def siglip_same_width() -> dict[str, Any]:
    """The text head keeps the width, as in all SigLIP models but the giant."""
    return _siglip({"hidden_size": 36, "num_attention_heads": 4})


def siglip_projection() -> dict[str, Any]:
    """The text head goes from one width to another."""
    return _siglip({"projection_size": 36})


def _siglip_vision(v4: bool = False) -> dict[str, Any]:
    return case(
        transformers.SiglipVisionModel,
        transformers.SiglipVisionConfig(**VISION),
        _image_inputs(),
        image_tower,
        rename="vision_model.{}".format if v4 else str,
    )


# Three images in one batch: wide with one patch of padding, small, and one of the table's own grid.
NAFLEX_SHAPES = [[3, 5], [2, 4], [4, 4]]
NAFLEX_INPUTS = {
    "patches": {"key": "patches", "shape": [3, 16, 3 * 4 * 4]},
    "patch_mask": [[1] * (h * w) + [0] * (16 - h * w) for h, w in NAFLEX_SHAPES],
    "spatial_shapes": NAFLEX_SHAPES,
}


def siglip2_naflex() -> dict[str, Any]:
    """Images of several shapes in patches; positions are resized for each."""
    vision = {key: value for key, value in VISION.items() if key != "image_size"}
    vision |= {"patch_size": 4, "num_patches": 16}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "projection_size": 36}
    config = transformers.Siglip2Config(vision_config=vision, text_config=TEXT | ids)
    inputs = NAFLEX_INPUTS | {"text": golden.siglip_text(CONTEXT, pad=0)}
    return case(transformers.Siglip2Model, config, inputs, pair)


def metaclip2() -> dict[str, Any]:
    """MetaCLIP 2: pools at the first end token (2), whatever its id."""
    config = transformers.MetaClip2Config(
        vision_config=VISION, text_config=TEXT | LEGACY_IDS, projection_dim=28
    )
    text = golden.padded([[0, 30, 12, 2], [0, 9, 2], [0, *range(20, 27), 2]], CONTEXT, 1)
    inputs = _image_inputs() | {"text": text}
    return case(transformers.MetaClip2Model, config, inputs, pair)


def _mlcd(v4: bool = False) -> dict[str, Any]:
    config = transformers.MLCDVisionConfig(**VISION)
    rename = "vision_model.{}".format if v4 else str
    return case(transformers.MLCDVisionModel, config, _image_inputs(), image_tower, rename)


def _dinov2(model: str, **more: Any) -> dict[str, Any]:
    vision = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    config = getattr(transformers, f"{model}Config")(**vision, mlp_ratio=3, **more)
    return case(getattr(transformers, f"{model}Model"), config, _image_inputs(), image_tower)


def bert() -> dict[str, Any]:
    """BERT: padding is 0, positions count from 0."""
    text = golden.padded([[2, 30, 12, 3], [2, 9, 3], [2, *range(20, 27), 3]], CONTEXT, 0)
    inputs = {"text": text, "text_mask": golden.mask(text, 0)}
    config = transformers.BertConfig(**TEXT, type_vocab_size=2, pad_token_id=0)
    return case(transformers.BertModel, config, inputs, masked_text_tower)


def xlm_roberta() -> dict[str, Any]:
    """XLM-R: padding is 1, positions count from 2."""
    text = golden.padded([[0, 30, 12, 2], [0, 9, 2], [0, *range(20, 27), 2]], CONTEXT, 1)
    inputs = {"text": text, "text_mask": golden.mask(text, 1)}
    sizes = TEXT | {"max_position_embeddings": CONTEXT + 2}  # positions begin at pad + 1
    config = transformers.XLMRobertaConfig(
        **sizes, **LEGACY_IDS, type_vocab_size=1, layer_norm_eps=1e-5
    )
    return case(transformers.XLMRobertaModel, config, inputs, masked_text_tower)


CLIP_IDS = golden.clip_text(VOCABULARY, CONTEXT)
CASES = {
    "hugging_face_clip_quick_gelu": lambda: _clip("quick_gelu", LEGACY_IDS, CLIP_IDS),
    "hugging_face_clip_gelu": lambda: _clip("gelu", NEW_IDS, NEW_TEXT),
    "hugging_face_clip_v4": clip_v4,
    "hugging_face_clip_sharded": lambda: _clip("quick_gelu", NEW_IDS, NEW_TEXT, shard="50KB"),
    "hugging_face_clip_vision_projection": lambda: _clip_vision(projection=True),
    "hugging_face_clip_vision": lambda: _clip_vision(projection=False),
    "hugging_face_clip_vision_v4": lambda: _clip_vision(projection=False, v4=True),
    "hugging_face_clip_text_projection": clip_text,
    "hugging_face_siglip": siglip_same_width,
    "hugging_face_siglip_projection": siglip_projection,
    "hugging_face_siglip_vision": _siglip_vision,
    "hugging_face_siglip_vision_v4": lambda: _siglip_vision(v4=True),
    "hugging_face_siglip2_naflex": siglip2_naflex,
    "hugging_face_metaclip2": metaclip2,
    "hugging_face_mlcd": _mlcd,
    "hugging_face_mlcd_v4": lambda: _mlcd(v4=True),
    "hugging_face_dinov2": lambda: _dinov2("Dinov2"),
    "hugging_face_dinov2_swiglu": lambda: _dinov2("Dinov2", use_swiglu_ffn=True),
    "hugging_face_dinov2_registers": lambda: _dinov2("Dinov2WithRegisters", num_register_tokens=4),
    "hugging_face_bert": bert,
    "hugging_face_xlm_roberta": xlm_roberta,
}
