"""Distillation of a batch's similarities: who resembles whom, as a teacher sees it (Hinton et al. 2015).

Student and teacher may have other widths and scales; only their B x B similarities meet, tile by tile.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.errors import UserError
from clipjax.losses import inputs
from clipjax.losses.softmax import softmax_contrastive, teacher_targets


def similarity_distill(
    image_BxD: jax.Array,
    text_BxD: jax.Array,
    logit_scale: jax.Array | float,
    teacher_image_BxK: jax.Array,
    teacher_text_BxK: jax.Array,
    teacher_scale: jax.Array | float,
    *,
    own_share: jax.Array | float = 0.0,
    temperature: float = 1.0,
    mesh: Mesh | None = None,
    layout: str = "gather",
    block_size: int | None = None,
    precision: str = "highest",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean divergence of the student's rows and columns of similarities from the teacher's.

    With logits S = logit_scale * image @ text.T and S' of the teacher, T the temperature and
    q_i = own_share * onehot_i + (1 - own_share) * softmax(S'_i / T), the loss is
    T^2 [ mean_i KL(q_i || softmax(S_i / T)) + the same of S.T and S'.T ] / 2. No gradient flows into the teacher or its
    scale. It is formed as cross-entropy less the entropy of q, so a divergence far below 1 has the rounding of these.

    Cost on each of N devices, with b = B / N rows: 2 b B (D + 2 K) FLOPs, and b B (6 D + 2 K) for the gradients, and no
    B x B words. Elements communicated: B (2 D + K) ("gather") or 3 B (D + K).

    Args:
      image_BxD: the student's rows, normalised or not; may be split over the `data` and `fsdp` axes of `mesh`. Both
        sides may be of one kind: the same texts twice.
      text_BxD: its columns; row i belongs to column i.
      logit_scale: its scale; positive.
      teacher_image_BxK: the teacher's rows, of any width.
      teacher_text_BxK: its columns.
      teacher_scale: its scale.
      own_share: share of the one-hot target, in [0, 1]: a number, or one for each row.
      temperature: divides both logits.
      mesh, layout, block_size, precision: as for `softmax_contrastive`.

    Returns:
      float32 scalar and the metric `target_entropy`, the mean entropy of q in nats.

    Raises:
      UserError: shapes that do not belong together, an own share outside [0, 1], or a temperature that is not positive.
    """
    if isinstance(own_share, int | float) and not 0 <= own_share <= 1:
        raise UserError(f"own_share must be from 0 to 1, not {own_share}.")
    if temperature <= 0:
        raise UserError(f"temperature must be above 0, not {temperature}.")
    how = dict(mesh=mesh, layout=layout, block_size=block_size)
    scales = [jnp.asarray(x, jnp.float32) / temperature for x in (logit_scale, teacher_scale)]
    targets = teacher_targets(
        teacher_image_BxK, teacher_text_BxK, scales[1], own_share=own_share, **how
    )
    cross_entropy, _ = softmax_contrastive(
        image_BxD, text_BxD, scales[0], targets=targets, precision=precision, **how
    )
    entropy = 0.5 * (jnp.mean(targets.row_entropy_R) + jnp.mean(targets.column_entropy_C))
    return temperature**2 * (cross_entropy - entropy), {"target_entropy": entropy}


def distill_similarities(
    outputs: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    *,
    mesh: Mesh | None = None,
    student: Sequence[str] = ("image_embedding", "text_embedding"),
    teacher: Sequence[str] = ("teacher_image_embedding", "teacher_text_embedding"),
    student_scale: str | float = "logit_scale",
    teacher_scale: str | float = "teacher_logit_scale",
    own_share: float = 0.0,
    temperature: float = 1.0,
    layout: str = "gather",
    block_size: int | None = None,
    precision: str = "highest",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`similarity_distill` as an entry of a config's losses.

    `student` and `teacher` are the outputs that hold rows and columns, the scales an output or a number.
    """
    del batch
    return similarity_distill(
        *(outputs[name] for name in student),
        inputs.scalar(outputs, student_scale),
        *(outputs[name] for name in teacher),
        inputs.scalar(outputs, teacher_scale),
        own_share=own_share,
        temperature=temperature,
        mesh=mesh,
        layout=layout,
        block_size=block_size,
        precision=precision,
    )
