"""The tokenizer of an open_clip directory, both ways: with the ids of `open_clip.get_tokenizer("local-dir:...")`.

`text_cfg` of open_clip_config.json says which: with `hf_tokenizer_name`, the files of the directory itself are read
with transformers, whatever the name; without, it is CLIP's vocabulary. Either repairs and cleans every text first, as
`tokenizer_kwargs` says.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipjax.convert.formats import tokenizer_json
from clipjax.convert.formats.tokenizer_files import (
    SPIECE_MODEL,
    TOKENIZER_JSON,
    as_it_came,
    converted,
    is_siglips,
    load,
    plain_files,
    saved,
    small_contents,
    vocabulary_file,
)
from clipjax.convert.formats.tokenizer_json import id_of, token_text
from clipjax.convert.formats.transformers_tokenizers import class_of, small_files, special_tokens
from clipjax.data.tokenizers import Tokenizer
from clipjax.data.tokenizers.clip_bpe import ClipBPE
from clipjax.errors import UserError

# What open_clip calls a cleaning, and what clipjax does; open_clip repairs the text with each.
_CLEANINGS = {"whitespace": "none", "lower": "lower", "canonicalize": "canonicalize"}
_NAMES = {ours: theirs for theirs, ours in _CLEANINGS.items()}
# Of text_cfg, what is about the tokenizer.
_KEYS = ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")
# Settings that clipjax reads; `reduction_mask` is a random choice of words in training, where a text is too long.
_KNOWN = ("clean", "strip_sep_token", "reduction_mask")
_INPUTS = ["input_ids", "attention_mask"]


def find_open_clip(
    folder: Path | None, text_cfg: Mapping[str, Any], length: int, vocab_size: int
) -> tuple[Callable[[], Tokenizer] | None, dict[str, Any]]:
    """The tokenizer of an open_clip model.

    Args:
      folder: the directory; None for a lone file.
      text_cfg: of open_clip_config.json or of the architecture's own config.
      length: of the text tower's rows.
      vocab_size: number of ids that the model knows.

    Returns:
      What makes the tokenizer, or None where nothing usable is there; and hints for `open_clip_files`.
    """
    kwargs = dict(text_cfg.get("tokenizer_kwargs") or {})
    hints = {"text_cfg": {key: text_cfg[key] for key in _KEYS if key in text_cfg}}
    unknown = sorted({*kwargs}.difference(_KNOWN))
    if text_cfg.get("tokenizer_mode"):
        unknown.append("tokenizer_mode")
    if unknown:
        return functools.partial(_refuse, unknown[0]), hints
    if not text_cfg.get("hf_tokenizer_name"):
        if vocab_size < ClipBPE.vocab_size:
            return None, hints
        return functools.partial(ClipBPE, length, kwargs.get("clean", "lower")), hints
    hints |= small_files(folder)
    cls = class_of(None, {}, hints)
    file = vocabulary_file(folder, prefer_model=cls == "SiglipTokenizer")
    if file is None:
        return None, hints
    return functools.partial(_load, file, cls, kwargs, hints, length, vocab_size), hints


def _refuse(setting: str) -> Tokenizer:
    raise UserError(
        f"open_clip_config.json: the tokenizer's {setting!r} is not supported; name a tokenizer of your own with "
        "--tokenizer."
    )


def _load(
    file: Path,
    cls: str,
    kwargs: Mapping[str, Any],
    hints: Mapping[str, Any],
    length: int,
    vocab_size: int,
) -> Tokenizer:
    return load(
        file,
        cls,
        None,
        hints,
        length,
        vocab_size,
        **_changed(file.name, file.read_bytes(), kwargs, hints),
    )


def _changed(
    name: str, content: bytes, kwargs: Mapping[str, Any], hints: Mapping[str, Any]
) -> dict[str, Any]:
    """What open_clip does around the tokenizer of transformers, as settings of clipjax's."""
    clean = kwargs.get("clean", "whitespace")
    if clean not in _CLEANINGS:
        raise UserError(f"open_clip_config.json: the tokenizer's clean {clean!r} is not supported.")
    changed: dict[str, Any] = dict(clean=_CLEANINGS[clean], repair=True)
    if kwargs.get("strip_sep_token"):
        # [SEP] becomes 0 wherever it is, also at the end of a text that is cut.
        if name != TOKENIZER_JSON:
            _refuse("strip_sep_token")
        file, tokens = tokenizer_json.parse(content, name), special_tokens(hints)
        cls_id = id_of(file, token_text(tokens.get("cls_token")) or "[CLS]")
        changed |= dict(file_specials=False, bos_id=cls_id, eos_id=0)
    return changed


def open_clip_files(
    tokenizer: Tokenizer, hints: Mapping[str, Any], length: int
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What makes `open_clip.get_tokenizer` give the same ids for a directory.

    open_clip repairs every text (ftfy, HTML references, whitespace), also where this tokenizer does not.

    Args:
      tokenizer: of the kinds `clip_bpe`, `hf_json` or `sentencepiece`; for `absent`, there is nothing to write.
      hints: of `find_open_clip` or `tokenizer_files.find_hugging_face`, or nothing.
      length: of a row.

    Returns:
      What to put into text_cfg, and name -> content of the files.

    Raises:
      UserError: of another kind, or one whose rows transformers does not make.
    """
    settings, content = saved(tokenizer)
    kind, came = settings.pop("kind"), hints.get("text_cfg", {})
    if kind == "absent":
        return dict(came), {}
    if kind == "clip_bpe":
        kept = came.get("tokenizer_kwargs", {})
        if came.get("hf_tokenizer_name") or kept.get("clean", "lower") != settings["clean"]:
            kept = {} if settings["clean"] == "lower" else {"clean": settings["clean"]}
        return ({"tokenizer_kwargs": dict(kept)} if kept else {}), {}
    if (files := _as_it_came(kind, settings, content, came, hints)) is not None:
        return dict(came), files
    # open_clip cleans, where it can; the rest is in the files.
    theirs = _NAMES.get(settings["clean"], "whitespace")
    inner = dict(settings) | dict(
        clean="none" if settings["clean"] in _NAMES else settings["clean"]
    )
    config = {
        # For a directory, any name will do; in a repository of a hub it must be that one's own.
        "hf_tokenizer_name": came.get("hf_tokenizer_name") or "local-dir",
        "tokenizer_kwargs": {"clean": theirs},
    }
    if kind == "hf_json":
        file = tokenizer_json.parse(content, TOKENIZER_JSON)
        return config, plain_files(file, inner, length, _INPUTS)
    if is_siglips(settings, content):
        named = dict(do_lower_case=True, eos_token="</s>", pad_token="</s>", unk_token="<unk>")
        return config, {SPIECE_MODEL: content} | small_contents(
            named, "SiglipTokenizer", _INPUTS, length
        )
    return config, plain_files(*converted(inner, content), length, _INPUTS)


def _as_it_came(
    kind: str,
    settings: Mapping[str, Any],
    content: bytes,
    came: Mapping[str, Any],
    hints: Mapping[str, Any],
) -> dict[str, bytes] | None:
    """The files of a tokenizer that was read with these hints; None if they would make another one of it."""
    if not came.get("hf_tokenizer_name"):
        return None
    name = TOKENIZER_JSON if kind == "hf_json" else SPIECE_MODEL
    changed = _changed(name, content, came.get("tokenizer_kwargs") or {}, hints)
    return as_it_came(kind, settings, content, None, hints, **changed)
