"""The arms: `plain`, CLIP on the drawings, and `crop`, which also says where its view was cut."""

from pathlib import Path

from clipjax.config import import_file

quickstart = import_file(Path(__file__).parents[3] / "configs" / "quickstart.py")
ARMS = ("plain", "crop")


def get_config(arg="crop"):
    if arg not in ARMS:
        raise ValueError(f"there is no arm {arg!r}; there are {', '.join(ARMS)}")
    config = quickstart.get_config()
    if arg == "crop":
        config.model.kind = "experiments._template.model:CropEncoder"
        config.data.features.crop = {"kind": "experiments._template.features:Crop"}
        config.losses.crop = {"kind": "experiments._template.losses:crop_error", "weight": 0.1}
    held_out = quickstart.held_out("unseen")
    config.evals.alignment = {"kind": "experiments._template.evals:Alignment", "source": held_out}
    return config
