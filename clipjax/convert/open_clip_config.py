"""The `model_cfg` of open_clip_config.json as a `model` section; `open_clip_export` is the way back."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from clipjax.convert import timm_models
from clipjax.convert.formats.hugging_face import bert
from clipjax.errors import UserError
from clipjax.models import image_section, model_section, text_section

_VISION = dict(
    layers=12,
    width=768,
    head_width=64,
    mlp_ratio=4.0,
    patch_size=16,
    image_size=224,
    ls_init_value=None,
    patch_dropout=0.0,
    attentional_pool=False,
    attn_pooler_queries=256,
    attn_pooler_heads=8,
    no_ln_pre=False,
    pos_embed_type="learnable",
    final_ln_after_pool=False,
    pool_type="tok",
    output_tokens=False,
    act_kwargs=None,
    norm_kwargs=None,
    timm_model_name=None,
    timm_model_pretrained=False,
    timm_pool="avg",
    timm_proj="linear",
    timm_proj_bias=False,
    timm_drop=0.0,
    timm_drop_path=None,
)
_TEXT = dict(
    context_length=77,
    vocab_size=49408,
    hf_tokenizer_name=None,
    tokenizer_mode=None,
    tokenizer_kwargs=None,
    width=512,
    heads=8,
    layers=12,
    mlp_ratio=4.0,
    ls_init_value=None,
    embed_cls=False,
    pad_id=0,
    eos_id=2,
    no_causal_mask=False,
    final_ln_after_pool=False,
    pool_type="argmax",
    proj_bias=False,
    proj_type="linear",
    output_tokens=False,
    act_kwargs=None,
    norm_kwargs=None,
    hf_model_name=None,
    hf_model_pretrained=True,
    hf_proj_type="mlp",
    hf_pooler_type="mean_pooler",
)
# Options of open_clip's custom blocks; no released model has them.
_BLOCK = dict.fromkeys(
    ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"),
    False,
) | {"block_type": None}
_MODEL = ("embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg", "quick_gelu", "custom_text")
_LOGITS = ("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale")

POOLERS = {"mean_pooler": "mean", "cls_pooler": "pooler", "cls_last_hidden_state_pooler": "class"}
HF_PROJECTIONS = {"mlp": "mlp_half", "linear": "linear"}

# The encoders of transformers that open_clip's text towers name. Weights come with the checkpoint.
_XLM_R = dict(
    model_type="xlm-roberta",
    vocab_size=250_002,
    max_position_embeddings=514,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
    hidden_act="gelu",
    pad_token_id=1,
)
_LARGE = dict(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
)
HF_TEXT = {
    "xlm-roberta-base": _XLM_R,
    "xlm-roberta-large": _XLM_R | _LARGE,
    "roberta-base": _XLM_R | dict(model_type="roberta", vocab_size=50_265),
}


class Layout(NamedTuple):
    """What the keys are like; all but the last follow from config and keys.

    Attributes:
      text: prefix of the text tower's keys, "text." or "".
      timm: arguments of the timm trunk, if the image tower is one (`timm_models`).
      head: whether a projection follows the trunk, instead of the trunk's own head.
      one_dimensional: whether the logits' scale and bias have shape [1].
      hf_config: config.json of the text tower in transformers, if it is one.
    """

    text: str
    timm: dict[str, Any] | None
    head: bool
    one_dimensional: bool
    hf_config: dict[str, Any] | None

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        hf_config: dict[str, Any] | None = None,
    ) -> "Layout":
        """The layout of a config."""
        vision, text = config["vision_cfg"], config["text_cfg"]
        name, timm = vision.get("timm_model_name"), None
        if name is not None:
            size = vision.get("image_size")
            timm = timm_models.arguments(name)
            timm |= {"img_size": size} if size is not None else {}
            timm["global_pool"] = vision.get("timm_pool", _VISION["timm_pool"])
        custom = config.get("custom_text", False) or "hf_model_name" in text
        if any(key.startswith("text.") for key in shapes) or "text_projection" in shapes:
            custom = "text_projection" not in shapes
        return cls(
            text="text." if custom else "",
            timm=timm,
            head=name is not None and vision.get("timm_proj", "linear") in ("linear", "mlp"),
            one_dimensional=len(shapes.get("logit_scale", ())) == 1,
            hf_config=hf_config,
        )


def to_model(config: Mapping[str, Any], layout: Layout) -> ConfigDict:
    """The `model` section of a `model_cfg`.

    Raises:
      UserError: an option that clipjax does not have (it is named).
    """
    _known(config, (*_MODEL, *_LOGITS), "model_cfg")
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    quick, embed_dim = bool(config.get("quick_gelu", False)), config["embed_dim"]
    bias = config.get("init_logit_bias")
    if layout.timm is not None:
        image = timm_models.image_tower(layout.timm)
        projection = _trunk_projection(vision)
    else:
        image, projection = _image(vision, embed_dim, quick)
    tower, text_projection = _text(text, quick, layout)
    return model_section(
        image,
        tower,
        embed_dim=embed_dim,
        image_projection=projection,
        text_projection=text_projection,
        init_scale=math.exp(config.get("init_logit_scale", math.log(1 / 0.07))),
        init_bias=None if bias is None else float(bias),
    )


def _known(config: Mapping[str, Any], known: Any, what: str) -> None:
    unknown = [name for name in config if name not in known]
    if unknown:
        raise UserError(
            f"open_clip_config.json: {what} has {', '.join(unknown)}, which clipjax does not know."
        )


def _checked(config: dict[str, Any], defaults: Mapping[str, Any], what: str) -> dict[str, Any]:
    _known(config, (*defaults, *_BLOCK), what)
    custom = [name for name, usual in _BLOCK.items() if config.get(name, usual) != usual]
    if custom:
        raise UserError(
            f"open_clip_config.json: {what} sets {', '.join(custom)}; clipjax does not have open_clip's custom blocks."
        )
    return {**defaults, **config}


def _activation(quick: bool, kwargs: Mapping[str, Any] | None) -> str:
    kwargs = dict(kwargs or {})
    tanh = kwargs.pop("approximate", "none") == "tanh"
    if kwargs or (quick and tanh):
        raise UserError(f"open_clip_config.json: act_kwargs {kwargs} are not supported.")
    return "quick_gelu" if quick else "gelu_tanh" if tanh else "gelu"


def _eps(kwargs: Mapping[str, Any] | None) -> float:
    kwargs = dict(kwargs or {})
    eps = kwargs.pop("eps", 1e-5)
    if kwargs:
        raise UserError(f"open_clip_config.json: norm_kwargs {kwargs} are not supported.")
    return eps


def _square(value: Any) -> int:
    if isinstance(value, list | tuple):
        if len(set(value)) != 1:
            raise UserError(f"open_clip_config.json: image_size is {value}; clipjax's are square.")
        return int(value[0])
    return value


def _image(vision: dict[str, Any], embed_dim: int, quick: bool) -> tuple[ConfigDict, str]:
    vision = _checked(vision, _VISION, "vision_cfg")
    width = vision["width"]
    if isinstance(vision["layers"], list | tuple):
        return image_section(
            "resnet",
            size=_square(vision["image_size"]),
            layers=tuple(vision["layers"]),
            width=width,
            heads=width * 32 // vision["head_width"],
            output_dim=embed_dim,
        ), "none"
    if vision["pos_embed_type"] != "learnable":
        raise UserError(
            f"open_clip_config.json: pos_embed_type {vision['pos_embed_type']!r} is not supported."
        )
    pools = {"tok": "class", "avg": "average"}
    if vision["attentional_pool"] is True:
        pool: dict[str, Any] = dict(
            pool="attention",
            pool_queries=vision["attn_pooler_queries"],
            pool_heads=vision["attn_pooler_heads"],
            pool_width=embed_dim,
        )
    elif vision["attentional_pool"] is False and vision["pool_type"] in pools:
        pool = dict(pool=pools[vision["pool_type"]])
    else:
        raise UserError(
            f"open_clip_config.json: the pooling attentional_pool={vision['attentional_pool']!r}, "
            f"pool_type={vision['pool_type']!r} is not supported."
        )
    return image_section(
        size=_square(vision["image_size"]),
        patch=_square(vision["patch_size"]),
        width=width,
        depth=vision["layers"],
        heads=width // vision["head_width"],
        mlp_ratio=int(width * vision["mlp_ratio"]) / width,
        class_token=True,
        pre_norm=not vision["no_ln_pre"],
        final_norm="pooled" if vision["final_ln_after_pool"] else "tokens",
        layer_scale=vision["ls_init_value"],
        patch_dropout=vision["patch_dropout"],
        activation=_activation(quick, vision["act_kwargs"]),
        eps=_eps(vision["norm_kwargs"]),
        **pool,
    ), "linear"


def _trunk_projection(vision: Mapping[str, Any]) -> str:
    vision = {**_VISION, **vision}
    proj = vision["timm_proj"] or None
    if proj == "none":
        return "none"
    if proj is None:
        return "bias"  # the trunk's own classifier
    if proj == "linear":
        return "bias" if vision["timm_proj_bias"] else "linear"
    raise UserError(f"open_clip_config.json: timm_proj {proj!r} is not supported.")


def _text(text: dict[str, Any], quick: bool, layout: Layout) -> tuple[ConfigDict, str]:
    text = _checked(text, _TEXT, "text_cfg")
    if text["hf_model_name"] is not None:
        if layout.hf_config is None:
            raise UserError(
                f"open_clip_config.json: the text tower {text['hf_model_name']!r} is none that clipjax knows "
                f"({', '.join(HF_TEXT)}), and there is no directory of that name with a config.json beside it."
            )
        if text["hf_pooler_type"] not in POOLERS:
            raise UserError(
                f"open_clip_config.json: hf_pooler_type {text['hf_pooler_type']!r} is not supported."
            )
        tower = bert.tower(layout.hf_config, POOLERS[text["hf_pooler_type"]])
        tower.length = min(tower.length, text["context_length"])
        projection = HF_PROJECTIONS.get(text["hf_proj_type"], "none")
        return tower, projection
    pools = {"argmax": "eot", "eos": "eot", "last": "last", "first": "first"}
    if text["embed_cls"]:
        pool: dict[str, Any] = dict(
            pool="class", class_token=True, pad_id=text["pad_id"], final_norm="pooled"
        )
    elif text["pool_type"] in pools:
        eos = text["pool_type"] == "eos"
        pool = dict(pool=pools[text["pool_type"]])
        # At argmax(ids): the end of text is the highest id.
        pool["end_token"] = text["eos_id"] if eos else text["vocab_size"] - 1
    else:
        raise UserError(
            f"open_clip_config.json: the text's pool_type {text['pool_type']!r} is not supported."
        )
    if text["final_ln_after_pool"]:
        raise UserError("open_clip_config.json: the text's final_ln_after_pool is not supported.")
    width = text["width"]
    tower = text_section(
        length=text["context_length"],
        vocab_size=text["vocab_size"],
        width=width,
        depth=text["layers"],
        heads=text["heads"],
        mlp_ratio=int(width * text["mlp_ratio"]) / width,
        attention="full" if text["no_causal_mask"] else "causal",
        layer_scale=text["ls_init_value"],
        activation=_activation(quick, text["act_kwargs"]),
        eps=_eps(text["norm_kwargs"]),
        **pool,
    )
    if text["proj_type"] in (None, "none"):
        return tower, "none"
    return tower, "bias" if text["proj_bias"] else "linear"
