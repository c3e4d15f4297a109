"""Base-to-novel generalisation (Zhou et al. 2022, CoCoOp)."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.errors import UserError
from clipjax.evals.records import Encoder
from clipjax.evals.zero_shot import ZeroShot

HALVES = ("base", "novel")


def harmonic_mean(base: float, novel: float) -> float:
    """HM = 2 b n / (b + n); 0 if both are."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


class BaseToNovel:
    """Accuracy on the classes that were trained on, and on others, each among its own half only.

    Args:
        name: the evaluator's name.
        encoder: the model's encoder.
        sources: `base` and `novel`, records with `image` and the field `label_field`.
        classes: of each half, as `ZeroShot` takes them.
        template: the sentence of a class.
        label_field: which field of a record holds its class.
        chunk: images or texts given to the encoder at once.
    """

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        sources: Mapping[str, Sequence[dict[str, Any]]],
        *,
        classes: Mapping[str, Any],
        template: str = "a photo of a {}.",
        label_field: str = "label",
        chunk: int = 1024,
    ):
        for what, given in (("sources", sources), ("classes", classes)):
            if sorted(given) != sorted(HALVES):
                raise UserError(
                    f"The {what} of evaluator {name!r} must be 'base' and 'novel', not {', '.join(map(repr, given))}."
                )
        how = dict(templates=(template,), label_field=label_field, chunk=chunk)
        self._halves = {
            half: ZeroShot(f"{name}.{half}", sources[half], encoder, classes=classes[half], **how)
            for half in HALVES
        }
        self.protocol: dict[str, Any] = {}

    def run(self, params: Any) -> dict[str, float]:
        """Returns `base`, `novel` and `hm`, in [0, 1]."""
        found = {half: zero_shot.run(params)["acc@1"] for half, zero_shot in self._halves.items()}
        self.protocol = {half: z.protocol for half, z in self._halves.items()}
        chance = {half: p["chance"]["acc@1"] for half, p in self.protocol.items()}
        self.protocol["chance"] = chance | {"hm": harmonic_mean(*chance.values())}
        return found | {"hm": harmonic_mean(*found.values())}
