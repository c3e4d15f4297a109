"""What transformers and open_clip make of directories with tokenizers, for make_tokenizer_goldens.py.

Of directories that transformers saved ("read"), and of those that clipjax writes ("written"): hashes of the rows of
some 10,000 strings in 54 languages, and a few rows as they are.
"""

import contextlib
import hashlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import transformers
from clip_bpe_strings import EMOJI, NASTY, PHRASES
from make_clip_bpe_golden import import_open_clip

from clipjax.convert.formats import clip_vocabulary
from clipjax.convert.formats.open_clip_tokenizer_files import find_open_clip, open_clip_files
from clipjax.convert.formats.tokenizer_files import find_hugging_face, hugging_face_files
from clipjax.data.tokenizers import Tokenizer, make_tokenizer

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from tests import languages

LENGTH = 64
END = 49_407  # of a text, in CLIP
VOCABULARY = 10**6  # of the model; more than any of these
SHOWN = [*PHRASES[:6], *EMOJI[:2], *NASTY[:30]]

# Directories of transformers: family, model type, which vocabulary, and the class that saves its tokenizer_config.json.
READ = {
    "clip": ("clip", "clip", "clip"),
    "bert": ("bert", "bert", "bert"),
    "xlm-roberta": ("xlm-roberta", "xlm-roberta", "xlm_r"),
    "metaclip_2": ("metaclip_2", "metaclip_2", "xlm_r"),
    "siglip": ("siglip", "siglip", "siglip"),
    "siglip2": ("siglip2", "siglip", "siglip2"),
    "naflex": ("siglip2", "siglip2", "siglip2"),
}
# Directories of open_clip: text_cfg, and which of the above the files are.
READ_OPEN_CLIP = {
    "simple": ({}, None),
    "simple_whitespace": ({"tokenizer_kwargs": {"clean": "whitespace"}}, None),
    "xlm-roberta": ({"hf_tokenizer_name": "xlm-roberta-base"}, "xlm-roberta"),
    "siglip": (
        {
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
            "tokenizer_kwargs": {"clean": "canonicalize"},
        },
        "siglip",
    ),
    "siglip2": (
        {
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2",
            "tokenizer_kwargs": {"clean": "canonicalize"},
        },
        "siglip2",
    ),
    "clipa": (
        {"hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": {"strip_sep_token": True}},
        "bert",
    ),
}
# What clipjax writes: config of a tokenizer, its vocabulary, family, model type.
_LIT = {"file_specials": False, "bos_id": 2, "pad_id": 0}
_GEMMA = {"clean": "lower_ascii", "file_specials": False, "eos_id": 1, "pad_id": 0}
WRITTEN = {
    "clip_bpe": ({"kind": "clip_bpe"}, None, "clip", "clip"),
    "clip_bpe_whitespace": ({"kind": "clip_bpe", "clean": "whitespace"}, None, "clip", "clip"),
    "clip_bpe_canonicalize": ({"kind": "clip_bpe", "clean": "canonicalize"}, None, "clip", "clip"),
    "bert": ({"kind": "hf_json", "pad_id": 0}, "bert", "bert", "bert"),
    "lit": ({"kind": "hf_json"} | _LIT, "bert", "bert", "bert"),
    "xlm_r": ({"kind": "hf_json", "pad_id": 1}, "xlm_r", "metaclip_2", "metaclip_2"),
    "siglip": ({"kind": "sentencepiece"}, "siglip", "siglip", "siglip"),
    "siglip_as_trained": (
        {"kind": "sentencepiece", "clean": "lower_ascii"},
        "siglip",
        "siglip",
        "siglip",
    ),
    "siglip2_as_trained": ({"kind": "hf_json"} | _GEMMA, "siglip2", "siglip2", "siglip"),
}
WRITTEN_OPEN_CLIP = {
    "clip_bpe": ({"kind": "clip_bpe"}, None),
    "clip_bpe_canonicalize": ({"kind": "clip_bpe", "clean": "canonicalize"}, None),
    "bert": ({"kind": "hf_json", "pad_id": 0, "repair": True}, "bert"),
    "lit": ({"kind": "hf_json", "repair": True} | _LIT, "bert"),
    "siglip": ({"kind": "sentencepiece", "repair": True}, "siglip"),
    "siglip2_as_trained": ({"kind": "hf_json", "repair": True} | _GEMMA, "siglip2"),
}


def vocabulary_file(vocabulary: str, tiny: dict[str, bytes]) -> tuple[str, bytes]:
    """Name and content of a directory's vocabulary."""
    if vocabulary == "clip":
        return "tokenizer.json", json.dumps(clip_vocabulary.tokenizer_json()).encode()
    name = "spiece.model" if vocabulary == "siglip" else "tokenizer.json"
    return name, tiny[vocabulary]


def saved_config(vocabulary: str, file: pathlib.Path) -> dict[str, Any]:
    """The tokenizer_config.json that transformers saves beside such a file."""
    if vocabulary == "siglip":
        made = transformers.SiglipTokenizer(str(file))
    else:
        model = json.loads(file.read_bytes())["model"]
        vocab = model["vocab"]
        if vocabulary == "bert":
            made = transformers.BertTokenizer(vocab=vocab)
        elif vocabulary == "xlm_r":
            made = transformers.XLMRobertaTokenizer(vocab=[tuple(piece) for piece in vocab])
        else:
            merges = [
                tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]
            ]
            if vocabulary == "clip":
                made = transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
            else:
                sides = dict(padding_side="right", add_bos_token=False, add_eos_token=True)
                made = transformers.Siglip2Tokenizer(vocab=vocab, merges=merges, **sides)
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        return json.loads((pathlib.Path(folder) / "tokenizer_config.json").read_text())


@contextlib.contextmanager
def directory(files: dict[str, bytes], **configs: Any) -> Iterator[pathlib.Path]:
    """A folder with these files, and the configs as JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        for file, config in configs.items():
            (folder / f"{file}.json").write_text(json.dumps(config))
        yield folder


def of_transformers(folder: pathlib.Path) -> languages.Rows:
    """Rows by `AutoTokenizer`."""
    made = transformers.AutoTokenizer.from_pretrained(str(folder))
    how = dict(padding="max_length", truncation=True, max_length=LENGTH)
    return lambda texts: np.asarray(made(texts, **how)["input_ids"], np.int32)


def of_open_clip(folder: pathlib.Path) -> languages.Rows:
    """Rows by `get_tokenizer`."""
    import open_clip

    made = open_clip.get_tokenizer(f"local-dir:{folder}")
    return lambda texts: made(texts).numpy().astype(np.int32)


def recorded(kind: str, theirs: languages.Rows, ours: Tokenizer, named: str) -> dict[str, Any]:
    """What the golden holds of one of them; stops where clipjax differs, prints how often it does so on purpose."""
    hashes, count = languages.digests(kind, theirs)
    pad_id = int(theirs(["a"])[0, -1])
    every = [text for _, plain, hard in languages.strings() for text in plain + hard]
    texts = [text for text in SHOWN if languages.comparable(kind, text)] + every
    wanted = theirs(texts)
    apart = (padded(ours(texts), pad_id) != wanted).any(axis=1)
    for text, differs in zip(texts, apart, strict=True):
        if differs and languages.comparable(kind, text):
            raise SystemExit(f"{named}: clipjax differs on {text!r}")
    shown = len(texts) - len(every)
    differ = int(apart[shown:].sum())
    print(f"{named}: {count:,} strings equal; of all {len(every):,}, {differ} differ")
    rows = wanted[:shown].tolist()
    return {"languages": hashes, "strings": count, "differ": differ, "rows": rows}


def padded(ids_NxL: np.ndarray, pad_id: int) -> np.ndarray:
    """Rows of CLIP with another id after the end of the text, where pad_id is that end; others as they are."""
    if pad_id != END:
        return ids_NxL
    ended_NxL = (ids_NxL == pad_id).cumsum(axis=1) > 0
    return np.where(ended_NxL, pad_id, ids_NxL)


def read(tiny: dict[str, bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Directories that others saved."""
    for name, (family, model_type, vocabulary) in READ.items():
        file, content = vocabulary_file(vocabulary, tiny)
        with directory({file: content}) as folder:
            tokenizer_config = saved_config(vocabulary, folder / file)
        config = {"model_type": model_type}
        with directory({file: content}, tokenizer_config=tokenizer_config, config=config) as folder:
            make, _ = find_hugging_face(folder, family, config, LENGTH, VOCABULARY)
            kind = {"siglip": "siglip", "siglip2": "siglip2", "naflex": "siglip2"}.get(name, "")
            found = recorded(kind, of_transformers(folder), make(), f"read hugging_face/{name}")
        found |= dict(family=family, model_type=model_type, vocabulary=vocabulary, kind=kind)
        yield f"hugging_face/{name}", found | {"tokenizer_config": tokenizer_config}
    for name, (text_cfg, files) in READ_OPEN_CLIP.items():
        vocabulary, contents, tokenizer_config = None, {}, None
        text_cfg = {"context_length": LENGTH} | text_cfg
        if files:
            vocabulary = READ[files][2]
            file, content = vocabulary_file(vocabulary, tiny)
            contents = {file: content}
            with directory(contents) as folder:
                tokenizer_config = saved_config(vocabulary, folder / file)
        open_clip_config = {"model_cfg": {"text_cfg": text_cfg}}
        with directory(
            contents, tokenizer_config=tokenizer_config or {}, open_clip_config=open_clip_config
        ) as folder:
            make, _ = find_open_clip(folder, text_cfg, LENGTH, VOCABULARY)
            found = recorded("", of_open_clip(folder), make(), f"read open_clip/{name}")
        found |= dict(text_cfg=text_cfg, vocabulary=vocabulary, kind="")
        yield f"open_clip/{name}", found | {"tokenizer_config": tokenizer_config}


def hashed(files: dict[str, bytes]) -> dict[str, str]:
    """What tells that the files are the same."""
    return {name: hashlib.sha256(content).hexdigest()[:12] for name, content in files.items()}


def written(tiny: dict[str, bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Directories that clipjax writes."""
    for name, (config, vocabulary, family, model_type) in WRITTEN.items():
        with directory({"vocabulary": tiny.get(vocabulary, b"")}) as folder:
            source = {"source": str(folder / "vocabulary")} if vocabulary else {}
            made = make_tokenizer(config | source, LENGTH)
        files = hugging_face_files(made, family, {}, LENGTH)
        kind = name.split("_as")[0].split("_w")[0].split("_can")[0]
        kind = "" if name == "siglip_as_trained" else kind
        with directory(files, config={"model_type": model_type}) as folder:
            found = recorded(kind, of_transformers(folder), made, f"written hugging_face/{name}")
        found |= dict(config=config, vocabulary=vocabulary, family=family, kind=kind)
        yield f"hugging_face/{name}", found | {"files": hashed(files)}
    for name, (config, vocabulary) in WRITTEN_OPEN_CLIP.items():
        with directory({"vocabulary": tiny.get(vocabulary, b"")}) as folder:
            source = {"source": str(folder / "vocabulary")} if vocabulary else {}
            made = make_tokenizer(config | source, LENGTH)
        text_cfg, files = open_clip_files(made, {}, LENGTH)
        open_clip_config = {"model_cfg": {"text_cfg": {"context_length": LENGTH} | text_cfg}}
        with directory(files, open_clip_config=open_clip_config) as folder:
            found = recorded("", of_open_clip(folder), made, f"written open_clip/{name}")
        found |= dict(config=config, vocabulary=vocabulary, kind="", text_cfg=text_cfg)
        yield f"open_clip/{name}", found | {"files": hashed(files)}


def golden(tiny: dict[str, bytes]) -> dict[str, Any]:
    """All of it."""
    import_open_clip()
    return {
        "length": LENGTH,
        "shown": SHOWN,
        "read": dict(read(tiny)),
        "written": dict(written(tiny)),
    }
