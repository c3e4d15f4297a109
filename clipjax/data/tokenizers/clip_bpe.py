"""The tokenizer of CLIP: byte-level byte-pair encoding over cleaned, usually lower-cased text.

Equal to `SimpleTokenizer` of open_clip 3.3.0 on every string, cleaning included
(tests/data/test_clip_bpe.py holds it to recorded ids). The steps: repair (ftfy, HTML references),
whitespace and case, split into words with one regular expression, then within each word join
neighbouring symbols, the earliest learnt merge first.

Ids: 0..255 are the bytes, 256..511 the bytes at the end of a word, 512..49405 the merges in the
order in which they were learnt, 49406 and 49407 the start and end of a text. So a merge's id is
its rank, and one number serves as both.
"""

import dataclasses
import functools
import gzip
import heapq
import importlib.resources
import itertools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import regex

from clipjax.data.tokenizers import fast_bpe
from clipjax.data.tokenizers.clean import cleaner
from clipjax.data.tokenizers.rows import checked_length, checked_texts
from clipjax.errors import UserError

SOT = 49_406  # start of text
EOT = 49_407  # end of text
_SPECIAL = {"<start_of_text>": SOT, "<end_of_text>": EOT}
_END_OF_WORD = "</w>"

# A special token spelled out, an English contraction, a run of letters, one digit, a run of the
# rest. Case is ignored because text that was not lower-cased comes here too; such a "<END_OF_TEXT>"
# is one word but not the token.
_WORD = regex.compile(
    "|".join([*_SPECIAL, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"])
    + r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)

# Words are cached by the process, whatever tokenizer asks. Longer ones hardly recur and would fill
# the memory.
_CACHED_WORDS = 65_536
_CACHED_WORD_LENGTH = 64


class _Vocabulary:
    """The symbols and merges; 49,408 ids, about 15 MB, read once per process in about 0.1 s."""

    def __init__(self, merges: Iterable[str]):
        # The printable Latin-1 characters stand for their own bytes; the other bytes follow,
        # written as the characters from U+0100 on. So symbols hold no spaces, and files can.
        own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        other = [byte for byte in range(256) if byte not in set(own)]
        letters = [chr(byte) for byte in own] + [chr(256 + i) for i in range(len(other))]
        self.byte_ids = [0] * 256
        for i, byte in enumerate(own + other):
            self.byte_ids[byte] = i
        self.letter_bytes = dict(zip(letters, own + other, strict=True))
        self.symbols = letters + [letter + _END_OF_WORD for letter in letters]
        ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        self.merge_ids: dict[tuple[int, int], int] = {}
        for merge in merges:
            left, right = merge.split(" ")
            merged = len(self.symbols)
            self.merge_ids[ids[left], ids[right]] = merged
            ids[left + right] = merged
            self.symbols.append(left + right)
        self.symbols += _SPECIAL

    def merge(self, word: bytes) -> tuple[int, ...]:
        """Ids of one non-empty word.

        O(n log n) for n bytes: scripts without spaces make words of whole sentences. A queue by
        (id, position) gives the same as joining all of a pair before looking at the next, since a
        merge's parts always have lower ids.
        """
        ids = [self.byte_ids[byte] for byte in word]
        ids[-1] += 256
        n = len(ids)
        previous = list(range(-1, n - 1))
        following = list(range(1, n + 1))
        merge_ids = self.merge_ids
        pairs = enumerate(itertools.pairwise(ids))
        queue = [(merge_ids[pair], i) for i, pair in pairs if pair in merge_ids]
        heapq.heapify(queue)
        while queue:
            merged, i = heapq.heappop(queue)
            j = following[i]
            if j == n or merge_ids.get((ids[i], ids[j])) != merged:
                continue  # an earlier merge took one of the two
            ids[i], ids[j] = merged, -1
            after = following[i] = following[j]
            if after < n:
                previous[after] = i
                if (new := merge_ids.get((merged, ids[after]))) is not None:
                    heapq.heappush(queue, (new, i))
            before = previous[i]
            if before >= 0 and (new := merge_ids.get((ids[before], merged))) is not None:
                heapq.heappush(queue, (new, before))
        return tuple(i for i in ids if i >= 0)


@functools.cache
def _vocabulary() -> _Vocabulary:
    packed = importlib.resources.files("clipjax") / "assets" / "clip_bpe" / "merges.txt.gz"
    return _Vocabulary(gzip.decompress(packed.read_bytes()).decode("utf-8").splitlines())


def _word_ids(word: str) -> tuple[int, ...]:
    special = _SPECIAL.get(word)
    return (special,) if special is not None else _vocabulary().merge(word.encode("utf-8"))


_cached_word_ids = functools.lru_cache(maxsize=_CACHED_WORDS)(_word_ids)


def _encode(cleaned: str) -> list[int]:
    ids = [SOT]
    for word in _WORD.findall(cleaned):
        short = len(word) <= _CACHED_WORD_LENGTH
        ids += _cached_word_ids(word) if short else _word_ids(word)
    ids.append(EOT)
    return ids


# open_clip repairs the text under every cleaning. Its names, and those of `clean.cleaner`.
_CLEANERS = {
    "lower": cleaner("lower", repair=True),
    "whitespace": cleaner("none", repair=True),
    "canonicalize": cleaner("canonicalize", repair=True),
}


@dataclasses.dataclass(frozen=True)
class ClipBPE:
    """CLIP's tokenizer. Holds two settings only, so it is cheap to make, compare and pickle.

    About 100,000 short ASCII texts a second and core once their words have been seen, 250,000 where
    instant-clip-tokenizer is installed (the ids are the same); text that ftfy has to look at (other
    scripts, control characters, "&") costs 10 to 30 microseconds more.

    Every str can be encoded: a lone surrogate becomes U+FFFD (ftfy does that, so open_clip does
    too), and so does an HTML reference of over 4,300 digits, the one thing that open_clip refuses.

    Attributes:
      length: number of ids in a row of `__call__`, start and end of text included.
      clean: "lower" (repair, collapse whitespace, lower case: CLIP), "whitespace" (the same, case
        kept) or "canonicalize" (lower case, no ASCII punctuation, "_" is a space).
    """

    length: int = 77
    clean: str = "lower"

    kind: ClassVar[str] = "clip_bpe"
    vocab_size: ClassVar[int] = 49_408
    pad_id: ClassVar[int] = 0
    sot_id: ClassVar[int] = SOT
    eot_id: ClassVar[int] = EOT

    def __post_init__(self):
        if self.clean not in _CLEANERS:
            known = ", ".join(map(repr, _CLEANERS))
            raise UserError(f"clip_bpe: clean is {self.clean!r}; it must be one of {known}.")
        checked_length(self.length, 2, self.kind)

    def cleaned(self, text: str) -> str:
        """The text that is split into words."""
        return _CLEANERS[self.clean](text)

    def encode(self, text: str) -> list[int]:
        """Ids of one text, start and end of text included, of any number."""
        checked_texts([text], self.kind)
        cleaned, fast = self.cleaned(text), fast_bpe.encoder()
        if fast is not None and fast_bpe.takes(cleaned):
            return [SOT, *fast.encode(cleaned), EOT]
        return _encode(cleaned)

    def encode_rows(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of ids as `__call__` gives, int32 [n, length], and which texts were cut, bool [n]."""
        cleaned = [self.cleaned(text) for text in checked_texts(texts, self.kind)]
        most = self.length + 1  # one id more than asked for: whatever is there was cut off
        fast = fast_bpe.encoder()
        taken = [] if fast is None else [i for i, t in enumerate(cleaned) if fast_bpe.takes(t)]
        if len(taken) == len(cleaned) > 0:
            ids_BxM = fast.tokenize_batch(cleaned, most).astype(np.int32)
        else:
            ids_BxM = np.full((len(cleaned), most), self.pad_id, np.int32)
            if taken:
                ids_BxM[taken] = fast.tokenize_batch([cleaned[i] for i in taken], most)
            for i in sorted({*range(len(cleaned))}.difference(taken)):
                ids = _encode(cleaned[i])
                if len(ids) > self.length:
                    ids[self.length :] = [EOT]
                ids_BxM[i, : len(ids)] = ids
        cut_B = ids_BxM[:, self.length] == EOT
        if cut_B.any():
            ids_BxM[cut_B, self.length - 1] = EOT
        return np.ascontiguousarray(ids_BxM[:, : self.length]), cut_B

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Rows of ids, int32 [n, length]: cut with the end of text as last id, or padded with 0.

        One str is taken as a list of one, as open_clip takes it.
        """
        return self.encode_rows(texts)[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids of `encode` or of a row of `__call__`.

        The start of text, the end of text and the padding after it are left off. Words come with
        one space between them, also where the text had none ("it 's", "no . 1"). Bytes that are
        not UTF-8, as a cut can leave, become U+FFFD.
        """
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UserError(f"clip_bpe: id {i} is outside of the vocabulary (0 to {EOT}).")
        end = len(ids)
        while end and ids[end - 1] == self.pad_id:
            end -= 1
        if end and ids[end - 1] == EOT:
            ids = ids[: end - 1]
        if ids[:1] == [SOT]:
            ids = ids[1:]
        vocabulary = _vocabulary()
        letters = "".join([vocabulary.symbols[i] for i in ids])
        text = bytes(map(vocabulary.letter_bytes.__getitem__, letters)).decode("utf-8", "replace")
        return text.replace(_END_OF_WORD, " ").removesuffix(" ")

    def save(self, directory: pathlib.Path) -> dict[str, Any]:
        """Settings for `load`; no file, as this kind has one vocabulary, part of the library."""
        del directory
        return {"kind": self.kind, "length": self.length, "clean": self.clean}

    @classmethod
    def load(cls, config: dict[str, Any], directory: pathlib.Path) -> Self:
        """The tokenizer that `save` described."""
        del directory
        return cls(length=config["length"], clean=config["clean"])
