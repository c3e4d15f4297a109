"""Ids of texts that are the same in every step."""

import numpy as np
import pytest
from flax.core import FrozenDict

from clipjax.data.tokenizers import make_tokenizer
from clipjax.data.tokenizers.table import token_table
from clipjax.errors import UserError

BPE = {"kind": "clip_bpe"}


def test_rows_are_the_tokenizers():
    texts = ("a photo of a cat.", "a photo of an osprey.")
    ids = token_table(FrozenDict(BPE), texts, 12)
    np.testing.assert_array_equal(ids, make_tokenizer(BPE, 12)(texts))
    assert (ids.shape, ids.dtype) == ((2, 12), np.int32)


def test_a_text_is_never_cut():
    with pytest.raises(UserError, match="'a photo of an osprey' has more than 4 tokens"):
        token_table(BPE, ("cat", "a photo of an osprey"), 4)
