"""Parameter surgery: prompts for a trained CLIP."""

import jax
import numpy as np
from ml_collections import ConfigDict

from clipjax.data.tokenizers import make_tokenizer
from clipjax.errors import UserError
from clipjax.models import example_batch, initialise, make_model, model_section

KIND = "experiments.maple.model:PromptedDualEncoder"


def add_prompts(
    params: dict,
    config: ConfigDict,
    *,
    arm: str = "coupled",
    count: int = 2,
    depth: int = 9,
    words: str = "a photo of a",
    seed: int = 0,
) -> tuple[dict, ConfigDict]:
    """A `dual_encoder` as one of an arm of `Prompts`, whose P_0 begins as the token embeddings of the first words.

    Args:
      params, config: of a checkpoint.
      arm, count, depth: see `Prompts`.
      words: at least `count` tokens; without language prompts nothing.
      seed: of all other prompts.
    """
    ours = {"kind": KIND, "arm": arm, "prompt_count": count, "prompt_depth": depth}
    config.model = model_section(**config.model.to_dict() | ours)
    model, example = make_model(config.model), example_batch(config.model, 1)
    zeros = {name: np.zeros(x.shape, x.dtype) for name, x in example.items()}
    fresh = jax.jit(lambda key: initialise(model, key, zeros)["prompts"])(jax.random.key(seed))
    prompts = {name: np.array(leaf.unbox()) for name, leaf in fresh.items()}
    if "text" in prompts:
        ids = make_tokenizer(config.tokenizer, config.model.text.length)([words])[0]
        if list(ids).index(config.model.text.end_token) <= count:
            raise UserError(
                f"add_prompts needs at least {count} tokens to begin with, but {words!r} has fewer; give "
                "other --stage.words."
            )
        prompts["text"][0] = params["text"]["token_embedding"][ids[1 : 1 + count]]
    params["prompts"] = prompts
    return params, config
