"""Which pairs are positive, and how much: the targets of a contrastive loss, formed tile by tile.

Targets are a tree of arrays that says what is known about each row and each column, and one static function that
makes of it the targets of a tile. Nothing of size B x B is needed, except where a user brings such a matrix. No
gradient flows through targets.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from clipjax.errors import UserError

Info = Mapping[str, jax.Array]


@flax.struct.dataclass
class Targets:
    """Base class.

    Attributes:
      hard: targets are 0 or 1, so that a hit can be counted.
      single: moreover no row and no column has more than one positive.
      left_out: static function of what is known about rows and columns -> bool [r, c], the pairs that are left out of
        every sum, neither positive nor negative; None if there are none. Like `tile` it finds `embedding` there too,
        the rows [r, D] and the columns [c, D] that the loss is given.
    """

    hard: ClassVar[bool] = True
    single: ClassVar[bool] = False
    left_out: ClassVar[Callable[[Info, Info], jax.Array] | None] = None

    def rows(self) -> dict[str, jax.Array]:
        """What is known about rows, arrays [R, ...]."""
        raise NotImplementedError

    def columns(self) -> dict[str, jax.Array]:
        """What is known about columns, arrays [C, ...]."""
        raise NotImplementedError

    @staticmethod
    def tile(rows: Info, columns: Info) -> tuple[jax.Array, jax.Array]:
        """Targets [r, c] of the row direction and of the column direction.

        They need not sum to 1 along a row (a column); the softmax loss divides by their sum.
        """
        raise NotImplementedError

    def check(self, rows: int, columns: int) -> None:
        """UserError unless these are targets for so many rows and columns."""
        for what, info, size in (
            ("rows", self.rows(), rows),
            ("columns", self.columns(), columns),
        ):
            for name, x in info.items():
                if x.shape[:1] != (size,):
                    raise UserError(
                        f"The targets' {name!r} of {what} has shape {list(x.shape)}, but there are {size} {what}."
                    )


@flax.struct.dataclass
class SameId(Targets):
    """A pair is positive if image and text carry the same number: several captions of an image, duplicates, classes.

    Attributes:
      image_id_R: int32; a negative number marks an image without any match.
      text_id_C: int32.
    """

    image_id_R: jax.Array
    text_id_C: jax.Array

    def rows(self) -> dict[str, jax.Array]:
        return {"id": jnp.asarray(self.image_id_R)}

    def columns(self) -> dict[str, jax.Array]:
        return {"id": jnp.asarray(self.text_id_C)}

    @staticmethod
    def tile(rows: Info, columns: Info) -> tuple[jax.Array, jax.Array]:
        same_rxc = (rows["id"][:, None] == columns["id"]) & (rows["id"][:, None] >= 0)
        target_rxc = same_rxc.astype(jnp.float32)
        return target_rxc, target_rxc


@flax.struct.dataclass
class Diagonal(SameId):
    """Row i belongs to column i; made by `diagonal`."""

    single: ClassVar[bool] = True


def diagonal(batch: int) -> Diagonal:
    """Targets by which row i belongs to column i."""
    number_B = jnp.arange(batch, dtype=jnp.int32)
    return Diagonal(number_B, number_B)


@flax.struct.dataclass
class Dense(Targets):
    """Targets given as a matrix, R x C words split over the devices by rows. For small batches.

    Attributes:
      target_RxC: not negative; the same matrix serves both directions.
    """

    hard: ClassVar[bool] = False

    target_RxC: jax.Array

    def rows(self) -> dict[str, jax.Array]:
        return {"target": jnp.asarray(self.target_RxC, jnp.float32)}

    def columns(self) -> dict[str, jax.Array]:
        return {"number": jnp.arange(self.target_RxC.shape[-1], dtype=jnp.int32)}

    @staticmethod
    def tile(rows: Info, columns: Info) -> tuple[jax.Array, jax.Array]:
        target_rxc = jnp.take(rows["target"], columns["number"], axis=1)
        return target_rxc, target_rxc


@flax.struct.dataclass
class Teacher(Targets):
    """Part one-hot, part a teacher's softmax: q = own_share * one-hot + (1 - own_share) * softmax(teacher's logits).

    The row direction takes the teacher's softmax over columns, the column direction that over rows. Made by
    `clipjax.losses.softmax.teacher_targets`, which forms their log-sums in one more forward pass over the pairs.

    Attributes:
      image_RxK, text_CxK: the teacher's embeddings, its scale multiplied into the images'.
      row_lse_R, column_lse_C: log-sums of its logits.
      own_share_R: the share of the one-hot part, of a row and of the column that belongs to it.
      row_entropy_R, column_entropy_C: entropies of the targets, in nats: cross-entropy less entropy is the divergence.
    """

    hard: ClassVar[bool] = False

    image_RxK: jax.Array
    text_CxK: jax.Array
    row_lse_R: jax.Array
    column_lse_C: jax.Array
    own_share_R: jax.Array
    row_entropy_R: jax.Array
    column_entropy_C: jax.Array

    def rows(self) -> dict[str, jax.Array]:
        number_R = jnp.arange(self.row_lse_R.size, dtype=jnp.int32)
        return {
            "teacher": self.image_RxK,
            "lse": self.row_lse_R,
            "share": self.own_share_R,
            "number": number_R,
        }

    def columns(self) -> dict[str, jax.Array]:
        number_C = jnp.arange(self.column_lse_C.size, dtype=jnp.int32)
        return {
            "teacher": self.text_CxK,
            "lse": self.column_lse_C,
            "share": self.own_share_R,
            "number": number_C,
        }

    @staticmethod
    def tile(rows: Info, columns: Info) -> tuple[jax.Array, jax.Array]:
        logits_rxc = jnp.matmul(
            rows["teacher"], columns["teacher"].T, precision=jax.lax.Precision.HIGHEST
        )
        own_rxc = rows["number"][:, None] == columns["number"]

        def mix(share: Any, lse: Any) -> jax.Array:
            return jnp.where(own_rxc, share, 0.0) + (1.0 - share) * jnp.exp(logits_rxc - lse)

        of_row = mix(rows["share"][:, None], rows["lse"][:, None])
        return of_row, mix(columns["share"], columns["lse"])
