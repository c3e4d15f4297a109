"""The tokenizer of a directory of transformers, both ways: with the ids of `AutoTokenizer`.

docs/tokenizers.md has what was compared, and where transformers differs from clipjax's own tokenizers.
"""

import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipjax.convert.folders import read_json
from clipjax.convert.formats import clip_vocabulary, tokenizer_json
from clipjax.convert.formats.sentencepiece_model import read_model, to_tokenizer_json
from clipjax.convert.formats.tokenizer_json import token_of
from clipjax.convert.formats.transformers_tokenizers import (
    PLAIN,
    SMALL,
    class_of,
    json_settings,
    model_settings,
    small_files,
)
from clipjax.data.tokenizers import Tokenizer
from clipjax.data.tokenizers.clip_bpe import ClipBPE
from clipjax.data.tokenizers.hf_json import HFTokenizer
from clipjax.data.tokenizers.sentencepiece import SentencePiece
from clipjax.errors import UserError

TOKENIZER_JSON = "tokenizer.json"
SPIECE_MODEL, TOKENIZER_MODEL = "spiece.model", "tokenizer.model"

# What a family's models take beside the ids; SigLIP was trained without a mask.
_INPUTS = {
    "clip": ["input_ids", "attention_mask"],
    "metaclip_2": ["input_ids", "attention_mask"],
    "siglip": ["input_ids"],
    "siglip2": ["input_ids"],
    "bert": ["input_ids", "token_type_ids", "attention_mask"],
    "roberta": ["input_ids", "attention_mask"],
    "xlm-roberta": ["input_ids", "attention_mask"],
}
# What special tokens are called, for those that a file has.
_NAMES = {
    "unk_token": ("<unk>", "[UNK]"),
    "bos_token": ("<s>", "<bos>"),
    "eos_token": ("</s>", "<eos>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("<mask>", "[MASK]"),
}
_AROUND = dict(clean="none", repair=False, file_specials=True, bos_id=None, eos_id=None)


def find_hugging_face(
    folder: Path | None, family: str, config: Mapping[str, Any], length: int, vocab_size: int
) -> tuple[Callable[[], Tokenizer] | None, dict[str, Any]]:
    """The tokenizer of a directory, with the rows of `AutoTokenizer(texts, padding="max_length", truncation=True)`.

    Args:
      folder: the directory; None for a lone file.
      family: "clip", "metaclip_2", "siglip", "siglip2" (Gemma's vocabulary), "bert", "roberta" or
        "xlm-roberta".
      config: config.json.
      length: of the text tower's rows.
      vocab_size: number of ids that the model knows.

    Returns:
      What makes the tokenizer, or None where nothing usable is there; and hints for `hugging_face_files`: the small
      JSON files as they are.
    """
    hints = small_files(folder)
    cls = class_of(family, config, hints)
    if config.get("model_type") == "siglip2":
        hints["model_type"] = "siglip2"
    file = vocabulary_file(folder, prefer_model=cls == "SiglipTokenizer")
    if file is not None:
        return functools.partial(load, file, cls, family, hints, length, vocab_size), hints
    other = folder is not None and (folder / "vocab.json").is_file() and not _is_clips(folder)
    if family == "clip" and vocab_size == ClipBPE.vocab_size and not other:
        return functools.partial(ClipBPE, length), hints
    return None, hints


def vocabulary_file(folder: Path | None, prefer_model: bool = False) -> Path | None:
    """The tokenizer.json or SentencePiece model of a directory, None if it has neither."""
    if folder is None:
        return None
    models = [SPIECE_MODEL, TOKENIZER_MODEL]
    names = [*models, TOKENIZER_JSON] if prefer_model else [TOKENIZER_JSON, *models]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def load(
    file: Path,
    cls: str,
    family: str | None,
    hints: Mapping[str, Any],
    length: int,
    vocab_size: int,
    **changed: Any,
) -> Tokenizer:
    """The tokenizer of a file as the class of transformers has it, but for the settings that are `changed`.

    Raises:
      UserError: it is damaged, has more ids than the model, or does what clipjax does not do.
    """
    side = hints.get("tokenizer_config", {}).get("padding_side", "right")
    if side != "right":
        raise UserError(
            f"tokenizer_config.json says padding_side = {side!r}, and clipjax pads on the right; name a tokenizer of "
            "your own with --tokenizer."
        )
    content = file.read_bytes()
    made: Tokenizer
    if file.name == TOKENIZER_JSON:
        settings = json_settings(tokenizer_json.parse(content, file), cls, family, hints)
        made = HFTokenizer(file, length, **(settings | changed))
    else:
        made = SentencePiece(
            file, length, **(model_settings(content, cls, family, hints) | changed)
        )
    if made.vocab_size > vocab_size:
        raise UserError(
            f"{file} has {made.vocab_size:,} ids, but the model knows {vocab_size:,}; name the right tokenizer with "
            "--tokenizer."
        )
    return made


def _is_clips(folder: Path) -> bool:
    return read_json(folder / "vocab.json") == clip_vocabulary.vocabulary()


def hugging_face_files(
    tokenizer: Tokenizer, family: str, hints: Mapping[str, Any], length: int
) -> dict[str, bytes]:
    """Files with which `AutoTokenizer.from_pretrained` gives the same ids, beside the config.json of `family`.

    A tokenizer that came from such a directory is written as it came. Of any other, what clipjax does around the
    vocabulary is written into the tokenizer.json itself; only the repair of a text (ftfy, HTML references) has no place
    there.

    Args:
      tokenizer: of the kinds `clip_bpe`, `hf_json` or `sentencepiece`; for `absent`, nothing is written.
      family: as of `find_hugging_face`; "siglip2" also for every model of that model type.
      hints: what that gave, or nothing.
      length: of a row.

    Returns:
      Name -> content.

    Raises:
      UserError: of another kind, or one whose rows transformers does not make.
    """
    settings, content = saved(tokenizer)
    kind = settings.pop("kind")
    if kind == "absent":
        return {}
    if kind == "clip_bpe":
        return _of_clip(settings["clean"], family, hints, length)
    if (kept := as_it_came(kind, settings, content, family, hints)) is not None:
        return kept
    if kind == "hf_json":
        file = tokenizer_json.parse(content, TOKENIZER_JSON)
        return _plain(file, settings, family, length)
    if family == "siglip" and is_siglips(settings, content):
        named = dict(do_lower_case=True, eos_token="</s>", pad_token="</s>", unk_token="<unk>")
        files = small_contents(named, "SiglipTokenizer", _INPUTS[family], length)
        return {SPIECE_MODEL: content} | files
    return _plain(*converted(settings, content), family, length)


def saved(tokenizer: Tokenizer) -> tuple[dict[str, Any], bytes]:
    """What a tokenizer saves: its kind and settings but the length, and the content of its file.

    Raises:
      UserError: it is of a kind that other libraries do not know.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = tokenizer.save(Path(folder))
        content = (Path(folder) / config["file"]).read_bytes() if "file" in config else b""
    if config["kind"] not in ("absent", "clip_bpe", "hf_json", "sentencepiece"):
        raise UserError(
            f"A tokenizer of the kind {config['kind']!r} cannot be written for other libraries; convert with "
            "--tokenizer=FILE."
        )
    return {name: v for name, v in config.items() if name not in ("file", "length")}, content


def as_it_came(
    kind: str,
    settings: Mapping[str, Any],
    content: bytes,
    family: str | None,
    hints: Mapping[str, Any],
    **changed: Any,
) -> dict[str, bytes] | None:
    """The files of a tokenizer that `load` read with these hints; None if they would make another one of it."""
    if "tokenizer_config" not in hints:
        return None
    cls = class_of(family, hints, hints)
    if kind == "hf_json":
        file = tokenizer_json.parse(content, TOKENIZER_JSON)
        read = _AROUND | json_settings(file, cls, family, hints) | changed
        files = {TOKENIZER_JSON: content}
        if cls == "CLIPTokenizer":
            files |= _vocabulary_files(file)
    else:
        read = dict(repair=False, eos="sticky") | model_settings(content, cls, family, hints)
        read |= changed
        spiece = cls in ("SiglipTokenizer", "T5Tokenizer")
        files = {SPIECE_MODEL if spiece else TOKENIZER_MODEL: content}
    small = {f"{name}.json": as_json(hints[name]) for name in SMALL if name in hints}
    return files | small if read == settings else None


def _vocabulary_files(file: Mapping[str, Any]) -> dict[str, bytes]:
    """vocab.json and merges.txt of a tokenizer.json of BPE, which older versions of transformers want."""
    merges = [m if isinstance(m, str) else " ".join(m) for m in file["model"].get("merges", [])]
    return {
        "vocab.json": json.dumps(file["model"]["vocab"], ensure_ascii=False).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
    }


def _of_clip(clean: str, family: str, hints: Mapping[str, Any], length: int) -> dict[str, bytes]:
    if family == "siglip2":
        raise _only_gemma()
    file = clip_vocabulary.tokenizer_json()
    start, end = clip_vocabulary.SOT, clip_vocabulary.EOT
    named: dict[str, Any] = dict(unk_token=end, bos_token=start, eos_token=end, pad_token=end)
    causal = family in ("clip", "metaclip_2")
    if not causal:
        # These see the padding, so it must be that of training, 0. It is "!", too, so the token is only that where it
        # stands alone.
        flags = dict(single_word=True, lstrip=False, rstrip=False, normalized=False)
        named["pad_token"] = dict(content="!", special=True, **flags)
    if clean == "lower":
        content = _compact(file)
        came = as_it_came("hf_json", _AROUND | dict(pad_id=ClipBPE.eot_id), content, family, hints)
        if came is not None:
            return came
        files = {TOKENIZER_JSON: content} | _vocabulary_files(file)
        return files | small_contents(named, "CLIPTokenizer", _INPUTS[family], length)
    file = tokenizer_json.with_settings(
        clip_vocabulary.tokenizer_json(lower=False), "none" if clean == "whitespace" else clean
    )
    return {TOKENIZER_JSON: _compact(file)} | small_contents(named, PLAIN, _INPUTS[family], length)


def is_siglips(settings: Mapping[str, Any], content: bytes) -> bool:
    """Whether transformers' SiglipTokenizer makes these rows of the model."""
    wanted = dict(clean="canonicalize", bos=False, eos="sticky")
    wanted["pad_id"] = read_model(content).id_of("</s>")
    return all(settings[name] == value for name, value in wanted.items())


def converted(settings: Mapping[str, Any], content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a `sentencepiece` tokenizer, the tokenizer.json and the settings of `hf_json` that make the same rows.

    Raises:
      UserError: its rows lose the end of a text that is cut, which those of `hf_json` never do.
    """
    if settings["eos"] == "yes":
        raise UserError(
            "transformers keeps the end of a text that is cut, which this tokenizer loses (eos='yes'); choose "
            "eos='sticky' or 'none'."
        )
    model = read_model(content)
    around = dict(
        clean=settings["clean"],
        repair=settings["repair"],
        file_specials=False,
        bos_id=model.bos_id if settings["bos"] else None,
        eos_id=model.eos_id if settings["eos"] == "sticky" else None,
        pad_id=settings["pad_id"],
    )
    return to_tokenizer_json(model), around


def _plain(
    file: Mapping[str, Any], settings: Mapping[str, Any], family: str, length: int
) -> dict[str, bytes]:
    if family == "siglip2" and not file.get("model", {}).get("byte_fallback"):
        raise _only_gemma()
    return plain_files(file, settings, length, _INPUTS[family])


def plain_files(
    file: Mapping[str, Any], settings: Mapping[str, Any], length: int, inputs: list[str]
) -> dict[str, bytes]:
    """A tokenizer.json that does by itself what the settings say, and which every version of transformers takes so."""
    around = {name: v for name, v in settings.items() if name not in ("pad_id", "repair")}
    special = {token["content"] for token in file.get("added_tokens") or () if token["special"]}
    named = {
        name: next(token for token in tokens if token in special)
        for name, tokens in _NAMES.items()
        if special.intersection(tokens)
    }
    named["pad_token"] = token_of(file, settings["pad_id"])
    content = _compact(tokenizer_json.with_settings(file, **around))
    return {TOKENIZER_JSON: content} | small_contents(named, PLAIN, inputs, length)


def small_contents(
    named: Mapping[str, Any], cls: str, inputs: list[str], length: int
) -> dict[str, bytes]:
    """The tokenizer_config.json and special_tokens_map.json of a class of transformers."""
    tokens = {name: token for name, token in named.items() if name.endswith("_token")}
    config = {
        "tokenizer_class": cls,
        "model_max_length": length,
        "model_input_names": inputs,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        **{
            name: {"__type": "AddedToken", **value} if isinstance(value, Mapping) else value
            for name, value in named.items()
        },
    }
    return {
        "tokenizer_config.json": as_json(config),
        "special_tokens_map.json": as_json(tokens),
    }


def as_json(value: Any) -> bytes:
    """A small JSON file."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _compact(file: Mapping[str, Any]) -> bytes:
    return json.dumps(file, ensure_ascii=False, separators=(",", ":")).encode()


def _only_gemma() -> UserError:
    return UserError(
        "transformers reads the tokenizer of every 'siglip2' model as Gemma's (byte-pair encoding with bytes for what "
        "is unknown), which this one is not; write open_clip's format."
    )
