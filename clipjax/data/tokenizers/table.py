"""Texts that are the same in every step, such as the sentences of classes: ids that a model holds as a constant."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipjax.data.tokenizers import make_tokenizer
from clipjax.errors import UserError


def token_table(tokenizer: Mapping[str, Any], texts: Sequence[str], length: int) -> np.ndarray:
    """Token ids int32 [C, L] of C texts.

    A model that encodes all its classes in every step (prompt learning, open-vocabulary segmentation) has their names
    as a setting, and calls this while it is traced:

    >>> ids = token_table(self.tokenizer, [f"a photo of a {c}." for c in self.classes], self.text.length)
    >>> outputs["class_centres"] = text_outputs(self.text, self.text_head, {"text": ids}, None)["text_embedding"]

    Args:
      tokenizer: section of a tokenizer, as `config.tokenizer`.
      texts: C texts.
      length: L.

    Raises:
      UserError: a text of more than L tokens, which would be cut.
    """
    ids_CxL, cut_C = make_tokenizer(tokenizer, length).encode_rows(texts)
    if cut_C.any():
        text = texts[int(np.argmax(cut_C))]
        raise UserError(
            f"The text {text!r} has more than {length} tokens and would be cut; shorten it, or take a longer "
            "text tower."
        )
    return ids_CxL
