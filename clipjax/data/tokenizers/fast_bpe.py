"""CLIP's byte-pair encoding in Rust, package instant-clip-tokenizer, for texts on which it is equal to ours.

The package knows Unicode 15.0, has no upper case and ignores no case, and its time grows with the
square of a word's length. So it gets a text only if all of these hold, and its ids are ours then:

- The text is lower case already.
- Every character was assigned in this Python's Unicode, which is 15.0 or older (Python 3.11: 14.0,
  3.12: 15.0). Newer ones are letters to the package `regex` that Rust does not know. Two are left
  out: "ſ" and U+0345, which are "s" and a letter to an expression that ignores case.
- No word is long; that is for time only.

tests/data/test_clip_bpe.py compares the two on every character and on every merge.
"""

import functools
import importlib.metadata
import re
import unicodedata
from typing import Any

# What was compared. Another version may split differently, so it is not used.
_VERSION = "0.1.1"
_UNICODE = ("14.0.0", "15.0.0")
_LONG_WORD = 512  # from about here our own queue is faster


@functools.cache
def encoder() -> Any | None:
    """The package's Tokenizer, made once per process in about 0.03 s, or None without the package."""
    try:
        if importlib.metadata.version("instant-clip-tokenizer") != _VERSION:
            return None
        import instant_clip_tokenizer
    except ImportError:  # also PackageNotFoundError
        return None
    return instant_clip_tokenizer.Tokenizer()


def known_ranges() -> list[tuple[int, int]]:
    """Characters on which both are equal, as (first, last); none beyond the second plane."""
    ranges: list[tuple[int, int]] = []
    if unicodedata.unidata_version not in _UNICODE:
        return [(0, 0x7F)]
    for code in range(0x20000):
        # Unassigned, surrogate, private use.
        if unicodedata.category(chr(code)) in ("Cn", "Cs", "Co") or code in (0x17F, 0x345):
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1] = (ranges[-1][0], code)
        else:
            ranges.append((code, code))
    return ranges


@functools.cache
def _unknown() -> re.Pattern[str]:
    """One character outside of `known_ranges`; made in about 0.03 s when other text than ASCII comes."""
    ranges = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in known_ranges())
    return re.compile(f"[^{ranges}]")


def takes(cleaned: str) -> bool:
    """Whether the ids of the package are ours for this text, of which the whitespace is collapsed."""
    return (
        cleaned == cleaned.lower()
        and (cleaned.isascii() or _unknown().search(cleaned) is None)
        and (len(cleaned) <= _LONG_WORD or max(map(len, cleaned.split(" "))) <= _LONG_WORD)
    )
