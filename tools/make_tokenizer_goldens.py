"""Records what transformers' and open_clip's tokenizers make of strings, with tiny vocabularies, for the tests.

    python tools/make_tokenizer_goldens.py                       # tests/data/golden/tokenizers.json.gz
    python tools/make_tokenizer_goldens.py --directories         # tests/data/golden/tokenizer_files.json.gz, from those
    python tools/make_tokenizer_goldens.py siglip2=FILE bert=... # real vocabularies, ours beside; no file

Needs the `reference` extra (transformers 5.23.0, open-clip-torch 3.3.0) with sentencepiece and protobuf. The tiny
vocabularies are trained on the drawings' names in nine languages. FILE is a `.model` for siglip and a tokenizer.json
for the others.
"""

import argparse
import base64
import collections
import gzip
import importlib.metadata
import importlib.resources
import io
import itertools
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import sentencepiece
import transformers
from clip_bpe_strings import EMOJI, NASTY, PHRASES, Strings
from tokenizers import AddedToken, Tokenizer, models, trainers

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from tests import languages

GOLDENS = pathlib.Path(languages.__file__).parent / "data" / "golden"
GOLDEN = GOLDENS / "tokenizers.json.gz"
DIRECTORIES = GOLDENS / "tokenizer_files.json.gz"

LENGTHS = (64, 8)
VOCABULARY = 800
LOCALES = ("ar", "de", "el", "en", "es", "fr", "he", "ru", "tr")

# Per family, what a user writes in the config; docs/tokenizers.md says the same. SigLIP 2 in transformers lower-cases
# all letters, not only A to Z.
CONFIGS: dict[str, dict[str, Any]] = {
    "siglip": {"kind": "sentencepiece"},
    "siglip2": {
        "kind": "hf_json",
        "clean": "lower",
        "file_specials": False,
        "eos_id": 1,
        "pad_id": 0,
    },
    "xlm_r": {"kind": "hf_json", "pad_id": 1},
    "bert": {"kind": "hf_json", "pad_id": 0},
}


def names() -> Iterator[str]:
    """Names and keywords of the drawings."""
    folder = importlib.resources.files("clipjax") / "assets" / "drawings" / "names"
    for locale in LOCALES:
        file = folder / f"{locale}.json.gz"
        for words in json.loads(gzip.decompress(file.read_bytes())):
            yield " ".join(words)


def unigram(**ids: int) -> bytes:
    """A SentencePiece model, of a kind that carries no table of characters and so is small."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line.lower() for line in names()),
        model_writer=model,
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        character_coverage=0.98,
        normalization_rule_name="identity",
        minloglevel=2,
        num_threads=1,
        **ids,
    )
    return model.getvalue()


def tiny(family: str) -> bytes:
    """A vocabulary of the family's own form, made by transformers itself."""
    if family == "siglip":
        return unigram(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    if family == "siglip2":
        specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[*specials, *bytes_],
            limit_alphabet=150,
            show_progress=False,
        )
        bpe.train_from_iterator([line.lower().replace(" ", "▁") for line in names()], trainer)
        model = json.loads(bpe.to_str())["model"]
        made = transformers.Siglip2Tokenizer(
            vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]]
        ).backend_tokenizer
        # As in Gemma's file: cased text comes in, and <bos> before it.
        file = json.loads(made.to_str())
        file["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        return json.dumps(file).encode()
    if family == "xlm_r":
        made = sentencepiece.SentencePieceProcessor()
        made.LoadFromSerializedProto(unigram())
        pieces = [(made.id_to_piece(i), made.get_score(i)) for i in range(3, made.vocab_size())]
        specials = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
        made = transformers.XLMRobertaTokenizer(vocab=[*specials, *pieces, ("<mask>", 0.0)])
    else:
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        # By hand, as the trainer's choice among equals changes from run to run.
        text = " ".join(names()).lower()
        letters = [c for c, _ in collections.Counter(text).most_common(150) if c != " "]
        words = [word for word, _ in collections.Counter(text.split()).most_common(400)]
        pieces = dict.fromkeys([*specials, *letters, *(f"##{c}" for c in letters), *words])
        made = transformers.BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})
    return made.backend_tokenizer.to_str().encode()


def reference(family: str, path: pathlib.Path) -> Callable[[list[str], int], list[list[int]]]:
    """Rows by transformers."""
    if family == "siglip":
        made = transformers.SiglipTokenizer(str(path))
    elif family == "siglip2":
        file = json.loads(path.read_bytes())
        model = file["model"]
        merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        made = transformers.Siglip2Tokenizer(
            vocab=model["vocab"],
            merges=merges,
            padding_side="right",
            add_bos_token=False,
            add_eos_token=True,
        )
        for token in file["added_tokens"]:  # Of Gemma's, HTML's tags among others.
            flags = {name: value for name, value in token.items() if name not in ("id", "content")}
            made.add_tokens(AddedToken(token["content"], **flags))
    else:
        pad = "[PAD]" if family == "bert" else "<pad>"
        made = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token=pad)
    return lambda texts, length: (
        made(texts, padding="max_length", truncation=True, max_length=length).input_ids
    )


def versions(*packages: str) -> dict[str, str]:
    """Of the packages that a golden came from."""
    return {name: importlib.metadata.version(name) for name in packages}


def pack(path: pathlib.Path, golden: dict[str, Any]) -> None:
    """Writes a golden; in ASCII, as there are characters that UTF-8 does not have."""
    packed = json.dumps(golden, separators=(",", ":")).encode("ascii")
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as out:
        out.write(packed)
    print(f"{path}: {path.stat().st_size:,} bytes")


def write_directories(path: pathlib.Path) -> None:
    """Writes the golden of directories, with the vocabularies of the other one."""
    import tokenizer_directories

    kept = json.loads(gzip.decompress(GOLDEN.read_bytes()))
    tiny = {family: base64.b64decode(kept[family]["file"]) for family in CONFIGS}
    about = {
        "about": "what AutoTokenizer and open_clip.get_tokenizer make of directories; hashes of the rows of "
        "tests/languages.py, and rows of `shown`",
        "command": "python tools/make_tokenizer_goldens.py --directories",
        "versions": versions("transformers", "open_clip_torch", "tokenizers", "sentencepiece"),
    }
    pack(path, about | tokenizer_directories.golden(tiny))


def write(path: pathlib.Path) -> None:
    """Writes the golden of tokenizers."""
    golden: dict[str, Any] = {
        "about": "rows of transformers' tokenizers, whose files are beside them in base64",
        "command": "python tools/make_tokenizer_goldens.py",
        "versions": versions("transformers", "tokenizers", "sentencepiece"),
    }
    texts = [*PHRASES, *EMOJI, *NASTY]
    for family, config in CONFIGS.items():
        content = tiny(family)
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "vocabulary"
            file.write_bytes(content)
            rows = reference(family, file)
            kept = [text for text in texts if languages.comparable(family, text)]
            golden[family] = {
                "config": config,
                "file": base64.b64encode(content).decode(),
                "texts": kept,
                "rows": {str(length): rows(kept, length) for length in LENGTHS},
            }
    pack(path, golden)


def compare(family: str, path: pathlib.Path, count: int) -> int:
    """Prints where clipjax differs; returns in how many texts."""
    from clipjax.data.tokenizers import make_tokenizer

    known = [text for _, plain, hard in languages.strings() for text in plain + hard]
    strings = [*PHRASES, *EMOJI, *NASTY, *known, *itertools.islice(Strings(1, PHRASES), count)]
    texts = [text for text in strings if languages.comparable(family, text)]
    rows, different = reference(family, path), set()
    for length in LENGTHS:
        ours = make_tokenizer(CONFIGS[family] | {"source": str(path)}, length)(texts)
        pairs = zip(texts, ours.tolist(), rows(texts, length), strict=True)
        different |= {text for text, own, theirs in pairs if own != theirs}
    for text in sorted(different)[:20]:
        print(f"differs: {text!r}")
    print(f"{family}: {len(texts):,} texts, lengths {LENGTHS}: {len(different)} differ")
    return len(different)


def main() -> None:
    """Writes the golden, or compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directories", action="store_true", help="the golden of directories")
    parser.add_argument("--count", type=int, default=20_000, help="random strings to compare")
    parser.add_argument("real", nargs="*", metavar="FAMILY=FILE", help=f"of {', '.join(CONFIGS)}")
    args = parser.parse_args()
    if args.directories:
        write_directories(DIRECTORIES)
        return
    if not args.real:
        write(GOLDEN)
        return
    pairs = [real.split("=", 1) for real in args.real]
    sys.exit(sum(compare(family, pathlib.Path(path), args.count) for family, path in pairs) > 0)


if __name__ == "__main__":
    main()
