"""CLIP's vocabulary as the files of transformers: vocab.json, merges.txt and tokenizer.json.

The merges are those that clipjax bundles. transformers' names for the start and end of a text differ from open_clip's.
"""

import gzip
import importlib.resources
import json
from typing import Any

SOT, EOT = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"

# What transformers' CLIPTokenizer splits a text into words with.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def merges() -> list[str]:
    """The 48,894 merges, "left right", in the order in which they were learnt."""
    packed = importlib.resources.files("clipjax") / "assets" / "clip_bpe" / "merges.txt.gz"
    return gzip.decompress(packed.read_bytes()).decode("utf-8").splitlines()


def vocabulary() -> dict[str, int]:
    """Symbol -> id, 49,408 of them."""
    # Printable Latin-1 characters stand for their own bytes, and come first; those from U+0100 on for the others.
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(byte) for byte in own] + [chr(256 + i) for i in range(256 - len(own))]
    words = [letter + _END_OF_WORD for letter in letters]
    symbols = [*letters, *words, *(merge.replace(" ", "") for merge in merges()), SOT, EOT]
    return {symbol: i for i, symbol in enumerate(symbols)}


def vocabulary_files() -> dict[str, bytes]:
    """The vocab.json and merges.txt that older versions of transformers read."""
    lines = "\n".join(["#version: 0.2", *merges(), ""])
    return {
        "vocab.json": json.dumps(vocabulary(), ensure_ascii=False).encode(),
        "merges.txt": lines.encode(),
    }


def tokenizer_json(lower: bool = True) -> dict[str, Any]:
    """The tokenizer.json of OpenAI's checkpoints: Unicode's composed form, single spaces, lower case, then words.

    Args:
      lower: False leaves the case as it is; contractions ('s) are still one word in any.
    """
    symbols = vocabulary()
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    space = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": symbols[token], "content": token, **flags} for token in (SOT, EOT)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "NFC"}, space, *([{"type": "Lowercase"}] if lower else [])],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _WORDS if lower else f"(?i:{_WORDS})"},
                    "behavior": "Removed",
                    "invert": True,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": lower,  # GPT-2's words, which would part 'S
                },
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [EOT, symbols[EOT]],
            "cls": [SOT, symbols[SOT]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": EOT,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": _END_OF_WORD,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": symbols,
            "merges": merges(),
        },
    }
