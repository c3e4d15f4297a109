"""Images in their own shape (NaFlex: Tschannen et al. 2025, SigLIP 2; Dehghani et al. 2023, NaViT).

A batch holds images as rows of flattened patches, padded to one length, with the grid of each. The table of positions
is resized to each grid, inside the program: bilinear with antialiasing, as `torch.nn.functional.interpolate` does it
with `align_corners=False`. The filter is separable, so a token's position is a product of weights for its row and for
its column.
"""

import jax
import jax.numpy as jnp

from clipjax.errors import UserError


def resampling_weights(place_BxN: jax.Array, length_B: jax.Array, size: int) -> jax.Array:
    """What each entry of a line adds to a place of the line resized to another length, float32 [B, N, size].

    A triangle filter whose width is that of the coarser of the two grids, with weights that sum to 1.

    Args:
      place_BxN: int32 places on the resized line; those from `length_B` on get some weights too.
      length_B: int32 lengths of the resized line, at least 1.
      size: length of the line as it is.
    """
    scale_Bx1x1 = size / length_B.astype(jnp.float32)[:, None, None]
    centre_BxNx1 = (place_BxN.astype(jnp.float32)[..., None] + 0.5) * scale_Bx1x1
    distance = jnp.abs(jnp.arange(size) + 0.5 - centre_BxNx1) / jnp.maximum(scale_Bx1x1, 1.0)
    weights = jnp.maximum(1.0 - distance, 0.0)
    return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-6)


def resized_positions(table_GxGxW: jax.Array, shape_Bx2: jax.Array, tokens: int) -> jax.Array:
    """The table resized to each image's grid, in reading order, float32 [B, tokens, W].

    Args:
      table_GxGxW: positions of a square grid.
      shape_Bx2: int32 rows and columns of each image.
      tokens: how many to return, at least rows * columns; what comes after these is of no use.
    """
    rows_B, columns_B = shape_Bx2[:, 0], shape_Bx2[:, 1]
    size = len(table_GxGxW)
    place = jnp.arange(tokens)
    row_BxN, column_BxN = place // columns_B[:, None], place % columns_B[:, None]
    rows_BxNxG = resampling_weights(row_BxN, rows_B, size)
    columns_BxNxG = resampling_weights(column_BxN, columns_B, size)
    both = jnp.einsum("bng,bnh->bngh", rows_BxNxG, columns_BxNxG)
    table = table_GxGxW.astype(jnp.float32).reshape(size * size, -1)
    # A handful of terms each: in bfloat16 passes they would lose digits that training has put there.
    highest = jax.lax.Precision.HIGHEST
    return jnp.matmul(both.reshape(-1, size * size), table, precision=highest).reshape(
        len(shape_Bx2), tokens, -1
    )


def real_patches(shape_Bx2: jax.Array, tokens: int) -> jax.Array:
    """Where a patch is one of the image, not padding: bool [B, tokens]."""
    return jnp.arange(tokens) < (shape_Bx2[:, 0] * shape_Bx2[:, 1])[:, None]


def check_images(shape: tuple[int, ...], image_shape: jax.Array | None, patch: int) -> None:
    """Refuses what is neither images that `patch` divides nor flattened patches with their images' shapes."""
    if len(shape) == 4:
        if image_shape is not None:
            raise UserError(
                "image_shape comes with flattened patches [B, N, 3pp]; whole images have their own shape."
            )
        if shape[1] % patch or shape[2] % patch or shape[3] != 3 or 0 in shape:
            raise UserError(
                f"With positions='naflex' the image tower takes images [H, W, 3] whose sides {patch} divides, "
                f"not {list(shape[1:])}."
            )
    elif len(shape) != 3 or shape[2] != 3 * patch * patch:
        raise UserError(
            f"The image tower takes flattened patches [N, {3 * patch * patch}], not {list(shape[1:])}."
        )
    elif image_shape is None or image_shape.shape != (shape[0], 2):
        found = "none" if image_shape is None else list(image_shape.shape)
        raise UserError(
            f"Flattened patches need image_shape [{shape[0]}, 2], rows and columns of each image; there is {found}."
        )
