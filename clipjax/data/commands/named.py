"""The data that a `clipjax data` command is about: a path pattern, a kind of source, or the sources of a config."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.data.sources import KINDS, make_source
from clipjax.errors import UserError
from clipjax.registry import nearest

# What a pattern ends with -> the kind of source, and its setting that takes the pattern.
ENDINGS = (
    (r"\.tars?", "tars", "shards"),
    (r"\.parquet", "parquet", "files"),
    (r"\.array_?record[^/]*", "array_record", "files"),
    (r"\.(jsonl|csv)", "captions", "file"),
)


class Named:
    """What a user has named.

    Attributes:
      entries: name -> entry of `data.sources`, plain Python.
      config: the run's config (`ml_collections.ConfigDict`), with exactly these sources read through `stream`; None if
        no config was named.
    """

    def __init__(self, entries: Mapping[str, dict[str, Any]], config: Any = None):
        self.entries, self.config = dict(entries), config

    def one(self, what: str) -> tuple[str, dict[str, Any]]:
        """(name, entry) of the only source.

        Raises:
          UserError: there are several; `what` says for what one is needed.
        """
        if len(self.entries) > 1:
            raise UserError(
                f"{what} takes one source, and the config has {', '.join(self.entries)}; choose one with --source."
            )
        return next(iter(self.entries.items()))

    def settings(self) -> Any:
        """The run's config; where none was named the defaults of all fields."""
        if self.config is not None:
            return self.config
        from clipjax.defaults import base_config  # imports the models

        return base_config()

    def tokenizer(self) -> Any:
        """The tokenizer of the config's texts, None if it has none; without a config CLIP's."""
        from clipjax.data.tokenizers import run_tokenizer

        return run_tokenizer(self.settings())

    def run(self) -> dict[str, Any]:
        """The run's config with these sources alone, plain Python."""
        config = self.settings().to_dict()
        return config | {"data": config["data"] | {"sources": self.entries}}

    def stream(self) -> Any:
        """The training stream of these sources; see `clipjax.data.stream.Stream`."""
        from clipjax.data.stream import Stream

        return Stream(self.run())


def named(
    pattern: str | None = None,
    settings: Sequence[str] = (),
    config: str | None = None,
    source: str | None = None,
    overrides: Sequence[str] = (),
) -> Named:
    """Finds out what is meant. Opens nothing.

    Args:
      pattern: a path pattern whose ending says the kind, a key of `sources.KINDS`, or an import path.
      settings: `NAME=VALUE` each, of the pattern's source. A value is a Python literal, or else a string.
      config: FILE[:arg] of a run's config, instead of a pattern.
      source: the only one of the config's sources that is meant; None: all of them.
      overrides: of the config's fields.

    Raises:
      UserError: neither or both are given, an ending that says nothing, a setting without a value or given twice, a
        source that the config does not have.
    """
    if (pattern is None) == (config is None):
        both = "not both" if config else "one of them"
        raise UserError(
            f"Name the data by SOURCE (a path pattern such as 'shards/*.tar', or a kind) or by --config=FILE, {both}."
        )
    if config is not None:
        if settings:
            raise UserError(
                "--set is for a SOURCE; with --config write --config.data.sources.NAME.SETTING=VALUE."
            )
        return _of_config(config, source, overrides)
    if source is not None or overrides:
        what = "--source" if source is not None else f"--config.{overrides[0]}"
        raise UserError(f"{what} belongs to a config; name it with --config=FILE.")
    entry = entry_of(pattern)
    for text in settings:
        name, value = parse_setting(text, "--set")
        if name in entry:
            raise UserError(f"The setting {name!r} of {pattern!r} is given twice.")
        entry[name] = value
    return Named({pattern: entry})


def entry_of(pattern: str) -> dict[str, Any]:
    """The entry of `data.sources` that a pattern or a kind stands for.

    Raises:
      UserError: it is neither.
    """
    for ending, kind, setting in ENDINGS:
        if re.search(rf"{ending}$", pattern, re.IGNORECASE):
            return {"kind": kind, setting: pattern}
    if pattern in KINDS or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", pattern):
        return {"kind": pattern}
    hint = nearest(pattern, KINDS) if pattern.isidentifier() else f" ({', '.join(KINDS)})"
    raise UserError(
        f"What {pattern!r} holds cannot be told: it ends neither with .tar, .tars, .parquet, .array_record, "
        f".arrayrecord, .jsonl nor .csv, and is no kind of source{hint}."
    )


def parse_setting(text: str, flag: str) -> tuple[str, Any]:
    """(name, value) of `NAME=VALUE`; the value is a Python literal, or else the string itself.

    Raises:
      UserError: it has no name or no value.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UserError(f"{flag} needs NAME=VALUE, not {text!r}.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return name, value


def open_source(entry: Mapping[str, Any], name: str) -> Any:
    """`make_source`, and a sentence for what its files may do to it."""
    try:
        return make_source(entry, name)
    except OSError as error:
        raise UserError(f"The source {name!r} cannot be opened: {error}.") from error


def _of_config(file: str, source: str | None, overrides: Sequence[str]) -> Named:
    from clipjax.config import load_config
    from clipjax.defaults import base_config

    config = load_config(file, base_config(), overrides)
    entries = {name: entry.to_dict() for name, entry in config.data.sources.items()}
    if not entries:
        raise UserError(f"The config {file!r} has no data.sources.")
    if source is None:
        return Named(entries, config)
    if source not in entries:
        raise UserError(f"The config has no source {source!r}{nearest(source, entries)}.")
    return Named({source: entries[source]}, config)
