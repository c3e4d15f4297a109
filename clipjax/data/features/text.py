"""Token ids of captions that a policy chooses: the feature `text`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clipjax.data.captions import make_captions
from clipjax.data.features.settings import row_length, struct, tokenizer_section
from clipjax.data.features.view import View
from clipjax.data.tokenizers import Tokenizer, make_tokenizer
from clipjax.errors import UserError


class Text:
    """int32 [L], the ids of one caption; [K,L] where the policy chooses K.

    A run may have several such features. The one named `text` uses a source's own `captions`, if its entry has any, in
    place of the feature's.

    Args:
      config: of the run.
      name: of the feature and of its field.
      captions: section of a policy of clipjax/data/captions.py.
      length: ids L of a row; None: config.model.text.length.
      tokenizer: section of a tokenizer; None: config.tokenizer.

    Raises:
      UserError: a setting that means nothing, or sources that disagree on the number of captions.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        name: str,
        captions: Mapping[str, Any] | None = None,
        length: int | None = None,
        tokenizer: Mapping[str, Any] | None = None,
    ):
        self.name, self.length = name, row_length(config, length, name, "length")
        self._section = tokenizer_section(config, tokenizer, name)
        policy = {"kind": "any"} if captions is None else captions
        sources = config["data"]["sources"] if name == "text" else {}
        own = {n: entry["captions"] for n, entry in sources.items() if entry.get("captions")}
        self._default = make_captions(policy) if len(own) < len(sources) or not sources else None
        self._own = {n: make_captions(section) for n, section in own.items()}
        self.count = _one_count({n: self.policy(n) for n in sources or ("",)})

    def policy(self, source: str) -> Any:
        """The caption policy of a source, by its name."""
        return self._own.get(source, self._default)

    def open(self) -> None:
        """Makes the tokenizer, which may read files."""
        self.tokenizer = make_tokenizer(self._section, self.length)

    def fields(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The ids, under the feature's name."""
        several = (self.count,) if self.count > 1 else ()
        return {self.name: struct((*several, self.length), np.int32)}

    def __call__(
        self, record: Mapping[str, Any], view: View, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Chooses captions, and leaves them in `view.captions`.

        Raises:
          BadRecord: the record has no text that the policy could use.
        """
        texts = list(self.policy(view.source_name)(record, rng))
        view.captions[self.name] = texts
        ids_KxL = encode(self.tokenizer, texts, view)
        return {self.name: ids_KxL if self.count > 1 else ids_KxL[0]}


def encode(tokenizer: Tokenizer, texts: Sequence[str], view: View) -> np.ndarray:
    """Ids int32 [n,L]; texts that are longer are counted in `view.cut`."""
    ids_NxL, cut_N = tokenizer.encode_rows(texts)
    view.cut += int(cut_N.sum())
    return ids_NxL


def _one_count(policies: Mapping[str, Any]) -> int:
    """The number of texts K, which all sources must share."""
    counts = {policy.count for policy in policies.values()}
    if len(counts) > 1:
        each = ", ".join(f"{n} {p.count}" for n, p in policies.items())
        raise UserError(
            f"The caption policies of a run's sources must give as many texts a sample; here they give: {each}."
        )
    return counts.pop()
