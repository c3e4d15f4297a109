"""Resampled positions against torch's and scipy's own numbers, and against sums written out."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st

from clipjax.convert.positions import METHODS, resample_grid, resample_line
from clipjax.errors import UserError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "positions.json").read_text())


def table(rows, width=3):
    return np.random.default_rng(rows).normal(size=(rows, width))


@pytest.mark.parametrize(
    "case", GOLDEN["grids"], ids=lambda c: f"{c['method']}-{c['old']}-{c['new']}"
)
def test_grids_as_torch(case):
    old = np.array(case["table"])
    found = resample_grid(old, case["new"], case["method"])
    np.testing.assert_allclose(found, case["wanted"], atol=1e-10)


@pytest.mark.parametrize("case", GOLDEN["lines"], ids=lambda c: f"{c['old']}-{c['new']}")
def test_lines_as_torch(case):
    found = resample_line(np.array(case["table"]), case["new"])
    np.testing.assert_allclose(found, case["wanted"], atol=1e-10)


@pytest.mark.parametrize(("old", "new"), [(3, 7), (7, 3), (14, 16), (2, 5), (5, 1)])
def test_zoom_as_scipy(old, new):
    grid = table(old * old)
    cube = grid.reshape(old, old, -1)
    wanted = scipy.ndimage.zoom(cube, (new / old, new / old, 1), order=1).reshape(new * new, -1)
    np.testing.assert_allclose(resample_grid(grid, new, "zoom"), wanted, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@given(old=st.integers(1, 20), new=st.integers(1, 40))
def test_weights_sum_to_one(method, old, new):
    matrix = METHODS[method](old, new)
    assert matrix.shape == (new, old)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_grid_stays_bit_for_bit(method):
    old = table(17).astype(np.float16)
    assert resample_grid(old, 4, method, prefix=1) is old


def test_the_prefix_stays_and_the_dtype_too():
    old = table(10).astype(np.float16)
    new = resample_grid(old, 5, "bicubic", prefix=1)
    assert new.shape == (26, 3)
    assert new.dtype == np.float16
    np.testing.assert_array_equal(new[0], old[0])


def test_refusals():
    with pytest.raises(UserError, match="11 rows, 1 of them apart, is no square grid"):
        resample_grid(table(11), 4, "bicubic", prefix=1)
    with pytest.raises(UserError, match=r"'bicubik' \(did you mean 'bicubic'"):
        resample_grid(table(9), 4, "bicubik")
