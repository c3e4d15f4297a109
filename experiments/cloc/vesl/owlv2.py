"""OWLv2 (Minderer et al. 2023, arXiv 2306.09683) through transformers, which CLOC's labels were made with."""

from collections.abc import Sequence

import numpy as np

from clipjax.errors import UserError
from experiments.cloc.vesl.assign import Detections
from experiments.cloc.vesl.example import Example
from experiments.cloc.vesl.torch_models import files_of, load_model

NO_PHRASE = " "  # the processor wants a query of every image


class OwlV2:
    """A checkpoint of OWLv2.

    The processor pads an image at the right and below to a square, so a box is divided by the share of the square that
    is image; boxes in the padding lie outside of the image.

    Args:
      model: a folder, or a name on the hub. CLOC used the CLIP L/14 that was self-trained and fine-tuned, "ST+FT".
      size: side of the square in pixels that the model sees; 0: what the checkpoint was made for (1,008 for L/14).
        CLOC's is 448, for which the embeddings of places are interpolated; a multiple of the patch size.
      device: torch's, such as "cuda"; None: a GPU if there is one.
      dtype: "float32", "bfloat16" or "float16".

    Raises:
      UserError: a size below 0.
    """

    def __init__(
        self,
        model: str = "google/owlv2-large-patch14-finetuned",
        size: int = 448,
        device: str | None = None,
        dtype: str = "float32",
    ):
        if size < 0:
            raise UserError(
                f"--detector.size must be a number of pixels, or 0 for the checkpoint's own, not {size}."
            )
        self._name, self._size, self._device, self._dtype = model, size, device, dtype

    def fingerprint(self) -> dict[str, int] | None:
        """See `files_of`."""
        return files_of(self._name)

    def load(self) -> None:
        """Raises UserError, see `load_model`, or for a size that is not a multiple of the patches'."""
        self._processor, self._model = load_model(
            "owlv2",
            "Owlv2Processor",
            "Owlv2ForObjectDetection",
            self._name,
            self._dtype,
            self._device,
        )
        vision = self._model.config.vision_config
        self._side = self._size or vision.image_size
        if self._side % vision.patch_size:
            raise UserError(
                f"--detector.size={self._side} is not a multiple of {vision.patch_size}, the patches of {self._name!r}."
            )
        self._words = self._model.config.text_config.max_position_embeddings

    def __call__(self, examples: Sequence[Example]) -> list[Detections]:
        """One pass of the model for the batch; images with fewer phrases cost as much as the one with most."""
        import torch

        inputs = self._processor(
            images=[e.image for e in examples],
            text=[list(e.phrases) or [NO_PHRASE] for e in examples],
            images_kwargs={"size": {"height": self._side, "width": self._side}},
            text_kwargs={"padding": "max_length", "max_length": self._words, "truncation": True},
            return_tensors="pt",
        ).to(self._model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        with torch.inference_mode():
            outputs = self._model(**inputs, interpolate_pos_encoding=True)
        scores_BxNxP = torch.sigmoid(outputs.logits.float()).cpu().numpy()
        boxes_BxNx4 = outputs.pred_boxes.float().cpu().numpy()
        return [
            Detections(to_image(boxes_Nx4, e.image.size), scores_NxP[:, : len(e.phrases)])
            for e, boxes_Nx4, scores_NxP in zip(examples, boxes_BxNx4, scores_BxNxP, strict=True)
        ]


def to_image(boxes_Nx4: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Centre x, y, width and height in fractions of the square -> x1,y1,x2,y2 in fractions of the image in it.

    Args:
      boxes_Nx4: float32 [N,4].
      size: (width, height) of the image, which lies in the square's upper left corner and fills its longer side.
    """
    width, height = size
    centre_Nx2, side_Nx2 = boxes_Nx4[:, :2], boxes_Nx4[:, 2:]
    corners_Nx4 = np.concatenate([centre_Nx2 - side_Nx2 / 2, centre_Nx2 + side_Nx2 / 2], axis=1)
    shares = np.array([width, height, width, height], np.float64) / max(width, height)
    return (corners_Nx4 / shares).astype(np.float32)
