"""The losses of each arm, and what all arms freeze."""

from experiments.clip_refine.losses import RAW

# The published scale only takes part in a contrastive term that is switched off.
FREEZE = ((r"teacher/.*", True), ("logit_scale", True), (".*", False))
# As long as nothing is trained, the teacher is the model itself.
TEACHER = {"teacher": {"copy": ""}}


def distill(alpha, scale=1.0):
    """HyCD, of raw products (scale 1); of `scale` times the cosine with `student` and `teacher` left out."""
    taught = tuple(f"teacher_{name}" for name in RAW)
    of = {"student": RAW, "teacher": taught, "student_scale": scale, "teacher_scale": scale}
    return {"kind": "similarity_distill", "own_share": alpha, **of}


def align(how, weight=1.0):
    """RaFA ("random"), or the features of a pair towards each other ("direct")."""
    return {"kind": f"experiments.clip_refine.losses:{how}_alignment", "weight": weight}


def arms(scale=1.0):
    """The losses of each arm; raw products in HyCD are multiplied by `scale`."""
    mixed = {"distill": distill(0.5, scale)}
    return {
        "contrastive": {"contrastive": {"kind": "softmax"}},
        "self": {"distill": distill(0.0, scale)},
        "mixed": mixed,
        "direct": mixed | {"align": align("direct")},
        "full": mixed | {"align": align("random")},
    }


ARMS = tuple(arms())


def losses(arm, scale=1.0):
    """Section `losses` of an arm."""
    if arm not in ARMS:
        raise ValueError(f"there is no arm {arm!r}; there are {', '.join(ARMS)}")
    return arms(scale)[arm]
