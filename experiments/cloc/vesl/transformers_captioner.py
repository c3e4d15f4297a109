"""A captioner that is a model of transformers: BLIP, LLaVA and their like."""

from collections.abc import Sequence

from experiments.cloc.vesl.example import Example
from experiments.cloc.vesl.torch_models import files_of, load_model


class TransformersCaptioner:
    """An image-text-to-text model; decoding is greedy, so that an image always gets the same caption.

    Args:
      model: a folder, or a name on the hub.
      prompt: for a model that follows instructions (its processor has a chat template) what is asked of it; for others,
        such as BLIP, how the caption shall begin, which then is no part of it.
      max_new_tokens: of a caption.
      device: torch's, such as "cuda"; None: a GPU if there is one.
      dtype: "float32", "bfloat16" or "float16".
    """

    def __init__(
        self,
        model: str,
        prompt: str = "",
        max_new_tokens: int = 128,
        device: str | None = None,
        dtype: str = "float32",
    ):
        self._name, self._prompt, self._tokens = model, prompt, max_new_tokens
        self._device, self._dtype = device, dtype

    def fingerprint(self) -> dict[str, int] | None:
        """See `files_of`."""
        return files_of(self._name)

    def load(self) -> None:
        """Raises UserError, see `load_model`."""
        self._processor, self._model = load_model(
            "transformers",
            "AutoProcessor",
            "AutoModelForImageTextToText",
            self._name,
            self._dtype,
            self._device,
        )
        self._chat = getattr(self._processor, "chat_template", None) is not None
        self._beginning = ""  # the prompt where it stands before a caption
        if self._chat:
            # What is generated begins where all prompts of the batch end.
            self._processor.tokenizer.padding_side = "left"
        elif self._prompt:
            # BLIP's tokenizer, for one, gives it back in lower case.
            tokenizer = self._processor.tokenizer
            ids = tokenizer(self._prompt)["input_ids"]
            self._beginning = tokenizer.decode(ids, skip_special_tokens=True).strip()

    def __call__(self, examples: Sequence[Example]) -> list[list[str]]:
        """One caption of each image."""
        import torch

        prompt = self._prompt
        if self._chat:
            content = [{"type": "image"}, {"type": "text", "text": self._prompt}]
            prompt = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        given = {"text": [prompt] * len(examples), "padding": True} if prompt else {}
        inputs = self._processor(
            images=[e.image for e in examples], return_tensors="pt", **given
        ).to(self._model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        with torch.inference_mode():
            ids_BxL = self._model.generate(**inputs, max_new_tokens=self._tokens, do_sample=False)
        if self._chat:
            ids_BxL = ids_BxL[:, inputs["input_ids"].shape[1] :]
        decoded = self._processor.batch_decode(ids_BxL, skip_special_tokens=True)
        texts = [t.strip().removeprefix(self._beginning).strip() for t in decoded]
        return [[t] if t else [] for t in texts]
