"""Every folder of experiments/ keeps what the core promises (tests/experiments/check.py)."""

import pytest

from tests.experiments import check


@pytest.mark.parametrize("folder", check.experiments())
class TestExperiment:
    def test_readme(self, folder):
        check.check_sections(folder)

    @pytest.mark.slow
    def test_meshes(self, folder):
        check.check_meshes(folder)

    @pytest.mark.slow
    def test_micro_batches(self, folder):
        check.check_micro_batches(folder)

    @pytest.mark.slow
    def test_run(self, folder, tmp_path):
        check.check_run(folder, tmp_path)
