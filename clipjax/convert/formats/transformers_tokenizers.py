"""What transformers' tokenizer classes add to the files of a directory, as settings of clipjax's tokenizers.

`AutoTokenizer` picks a class by `model_type` and `tokenizer_class`, and the class adds what it knows of its models:
SigLIP's text is canonicalized, SigLIP 2's lower-cased. docs/tokenizers.md has what was compared.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipjax.convert.folders import read_json
from clipjax.convert.formats import clip_vocabulary
from clipjax.convert.formats.sentencepiece_model import read_model
from clipjax.convert.formats.tokenizer_json import id_of, token_text
from clipjax.errors import UserError

# The one that reads a tokenizer.json as it is, by its names over the years.
PLAIN = "PreTrainedTokenizerFast"
_PLAIN = ("PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")

# The class that is registered for a family's model type.
_REGISTERED = {
    "clip": "CLIPTokenizer",
    "metaclip_2": "XLMRobertaTokenizer",
    "siglip": "SiglipTokenizer",
    "siglip2": "Siglip2Tokenizer",
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
# What a class pads with where no file says it; the others have "<pad>".
_PADDING = {
    "CLIPTokenizer": clip_vocabulary.EOT,
    "SiglipTokenizer": "</s>",
    "BertTokenizer": "[PAD]",
}

# Small files whose content goes into the hints, by name without ".json".
SMALL = ("tokenizer_config", "special_tokens_map", "added_tokens")
_LARGEST_SMALL = 2**17  # bytes; a checkpoint carries them in its description


def small_files(folder: Path | None) -> dict[str, Any]:
    """The contents of tokenizer_config.json and its like, by name without ".json"; what is too large is left out."""
    if folder is None:
        return {}
    paths = {name: folder / f"{name}.json" for name in SMALL}
    return {
        name: read_json(path)
        for name, path in paths.items()
        if path.is_file() and path.stat().st_size <= _LARGEST_SMALL
    }


def class_of(family: str | None, config: Mapping[str, Any], hints: Mapping[str, Any]) -> str:
    """The class with which `AutoTokenizer` loads a directory, without "Fast".

    Args:
      family: the model's, see `tokenizer_files.find_hugging_face`; None for a directory without a config.json.
      config: config.json, of which `model_type` and `tokenizer_class` count.
      hints: of `small_files`.
    """
    if config.get("model_type") == "siglip2":  # Whatever the directory says.
        return _REGISTERED["siglip2"]
    named = hints.get("tokenizer_config", {}).get("tokenizer_class")
    named = named or config.get("tokenizer_class") or _REGISTERED.get(family or "", PLAIN)
    return PLAIN if named in _PLAIN else named.removesuffix("Fast")


def special_tokens(hints: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json, with special_tokens_map.json over it where it is of the older form."""
    config = dict(hints.get("tokenizer_config", {}))
    if "added_tokens_decoder" not in config:
        config |= hints.get("special_tokens_map", {})
    return config


def json_settings(
    file: Mapping[str, Any], cls: str, family: str | None, hints: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of the tokenizer kind `hf_json` with which a tokenizer.json gives what the class gives."""
    config = special_tokens(hints)
    pad = token_text(config.get("pad_token")) or (file.get("padding") or {}).get("pad_token")
    settings: dict[str, Any] = {"pad_id": id_of(file, pad or _PADDING.get(cls, "<pad>"))}
    if cls == "SiglipTokenizer":
        eos_id = id_of(file, token_text(config.get("eos_token")) or "</s>")
        settings |= dict(clean=_siglip_clean(config), file_specials=False, eos_id=eos_id)
    elif cls in ("Siglip2Tokenizer", "GemmaTokenizer") and family in ("siglip", "siglip2"):
        settings["clean"] = "lower"
        # Gemma's own file begins texts with <bos>; SigLIP 2 has <eos> at their ends instead.
        wanted = {"bos": config.get("add_bos_token"), "eos": config.get("add_eos_token")}
        if not config:
            wanted = {"bos": False, "eos": True}
        if set(wanted.values()) != {None}:
            tokens = {
                side: token_text(config.get(f"{side}_token")) or f"<{side}>" for side in wanted
            }
            ids = {f"{side}_id": id_of(file, tokens[side]) for side, add in wanted.items() if add}
            settings |= dict(file_specials=False, **ids)
    return settings


def model_settings(
    content: bytes, cls: str, family: str | None, hints: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of the tokenizer kind `sentencepiece` for a SentencePiece model, likewise."""
    config = special_tokens(hints)
    clean = "none"
    if cls == "SiglipTokenizer":
        clean = _siglip_clean(config)
    elif family in ("siglip", "siglip2"):
        clean = "lower"
    pad = token_text(config.get("pad_token")) or _PADDING.get(cls, "<pad>")
    bos = bool(config.get("add_bos_token", False))
    return dict(clean=clean, pad_id=read_model(content).id_of(pad), bos=bos)


def _siglip_clean(config: Mapping[str, Any]) -> str:
    if not config.get("do_lower_case", True):
        raise UserError(
            "tokenizer_config.json says do_lower_case = false: SigLIP's cleaning without lower case, which clipjax "
            "does not have; name a tokenizer of your own with --tokenizer."
        )
    return "canonicalize"
