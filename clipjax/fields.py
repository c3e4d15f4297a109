"""The names that a Batch and the Outputs of a model may have, each documented once.

A batch is a flat dict of arrays. Models read it, losses read it, the features of the pipeline write it; one of one's
own may add any names. Letters: B batch, H W image, V views, L text length, K captions of one image, M regions, l
labels, N image tokens, P numbers of a patch, D shared space, W tower width, C classes.
"""

from typing import NamedTuple


class Field(NamedTuple):
    """Shape and dtype of one named array, and what it holds."""

    shape: str
    dtype: str
    meaning: str


BATCH: dict[str, Field] = {
    "image": Field(
        "B H W 3 | B V H W 3 | B N P",
        "uint8",
        "images, V views of each, or patches of them; normalised on the device",
    ),
    "image_shape": Field("B 2", "int32", "rows and columns of patches, where `image` is patches"),
    "text": Field("B L | B K L", "int32", "token ids, one or K captions an image"),
    "text_mask": Field("B L | B K L", "bool", "True where a token is not padding"),
    "boxes": Field("B M 4", "float32", "x1,y1,x2,y2 in [0,1] of the model's input frame"),
    "region_text": Field("B M L", "int32", "token ids of region texts"),
    "region_mask": Field("B M", "bool", "True where a region exists"),
    "labels": Field("B l", "int32", "class labels, padded with -1"),
    "mask": Field("B H W", "int32", "label of each pixel of the first view; 255: ignore"),
    "language": Field("B", "int32", "place in the feature's `tags`; -1: none of them"),
    "sample_id": Field("B", "int64", "which record; stays on the host"),
    "sample_seed": Field("B", "uint32", "hash of (seed, place in the stream): randomness a sample"),
    "counts": Field("B n", "int32", "what happened on the way to a sample; stays on the host"),
}

# Fields that never leave the host: JAX would cut int64 to int32, and nobody there counts. All others do.
HOST_ONLY = ("sample_id", "counts")

OUTPUTS: dict[str, Field] = {
    "image_embedding": Field("B D", "float32", "L2-normalised"),
    "text_embedding": Field("B D", "float32", "L2-normalised"),
    "image_embedding_raw": Field("B D", "float32", "the same before it is normalised"),
    "text_embedding_raw": Field("B D", "float32", "the same before it is normalised"),
    "image_tokens": Field("B N W", "compute", "un-pooled image tokens"),
    "text_tokens": Field("B L W", "compute", "un-pooled text tokens"),
    "region_embedding": Field("B M D", "float32", "of `boxes`; L2-normalised"),
    "region_text_embedding": Field("B M D", "float32", "of `region_text`; L2-normalised"),
    "grounded_boxes": Field(
        "B M 4", "float32", "of `region_text`; as `boxes`, neither clipped nor ordered"
    ),
    "logit_scale": Field("", "float32", "already exponentiated; global"),
    "logit_bias": Field("", "float32", "global"),
    "class_centres": Field("C D", "float32", "global"),
}

# Outputs without a leading batch axis. Gradient caching sums their gradients instead of concatenating them.
GLOBAL_OUTPUTS = ("logit_scale", "logit_bias", "class_centres")
