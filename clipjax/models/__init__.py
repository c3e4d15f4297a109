"""Models, built from the `model` section of a config.

A model is a Flax module whose `__call__(batch, *, train=False)` returns a dict of outputs. The library's kinds are in
`MODELS`; an experiment names its own by import path, most simply a subclass:

>>> class Distilled(DualEncoder, kw_only=True):  # experiments/mine/model.py
...     teacher: nn.Module  # a part: a section with a kind, of any depth
...     temperature: float = 1.0  # a setting
...     needs = ("image", "text", "labels")  # batch fields it cannot do without
...
...     def __call__(self, batch, *, train=False):
...         outputs = super().__call__(batch, train=train)
...         taught = self.teacher(batch)["image_embedding"]
...         return outputs | {"teacher_image_embedding": jax.lax.stop_gradient(taught)}
>>> config.model = model_section(
...     kind="experiments.mine.model:Distilled",
...     teacher=model_section(image_section(width=768), kind="image_encoder", dtype="bfloat16"),
... )
>>> config.init = {"teacher": {"path": "runs/big", "part": ""}}  # see clipjax/convert/pretrained.py
>>> config.optim.freeze = ((r"teacher/.*", True), (".*", False))

**Parts.** A field that is given as a section with a `kind` is a part: it is built by that kind, and its parameters are
under the field's name (`teacher/image/...`). A part may be a whole model, whose towers are parts of it. The kinds of
`image`, `text` and `regions` are those of `PARTS`; any other part may be of any of the library's kinds, or an import
path. Every part may have its own `dtype` and `param_dtype` (None: those of what it is a part of) and `remat`. The
`attention` and `quantize` of the whole model go to every part below; a part that has parts may say otherwise for them.

**Rules for a module.** A setting that is a list becomes a tuple, a dict a `FrozenDict`, so that modules can be hashed;
a section for a field that is annotated as a `Mapping`, such as that of a tokenizer, is a setting and no part.
All parameters are made by `__call__` with `train=False`, or by `whole_batch`. What is random while training comes from
`batch["sample_seed"]` (uint32 [B]) alone. Each sample's outputs depend on that sample alone; what mixes samples (batch
norm) belongs in an optional `whole_batch(self, outputs, batch, *, train) -> outputs`, which the train step calls with
what `__call__` made of the whole batch, also where that was in micro-batches. New values of parameters that have no
gradient go into the mutable collection "updates", see `batch_norm.BatchNorm`.
"""

from clipjax.models.build import compute_dtype, make_model, matmul_precision
from clipjax.models.sections import (
    IMAGE_TOWERS,
    MODELS,
    PARTS,
    REGION_HEADS,
    TEXT_TOWERS,
    TOWERS,
    image_section,
    model_parts,
    model_section,
    part_fields,
    region_section,
    section,
    text_section,
)
from clipjax.models.shapes import boxed_params, example_batch, example_regions, initialise, needs

__all__ = [
    "IMAGE_TOWERS",
    "MODELS",
    "PARTS",
    "REGION_HEADS",
    "TEXT_TOWERS",
    "TOWERS",
    "boxed_params",
    "compute_dtype",
    "example_batch",
    "example_regions",
    "image_section",
    "initialise",
    "make_model",
    "matmul_precision",
    "model_parts",
    "model_section",
    "needs",
    "part_fields",
    "region_section",
    "section",
    "text_section",
]
