"""torch's resampling of small position tables, for tests/convert/test_positions.py.

python tools/make_positions_golden.py        (needs torch: pip install 'clipjax[reference]')
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

TARGET = Path(__file__).parents[1] / "tests" / "convert" / "golden" / "positions.json"
WIDTH = 2
GRIDS = [(3, 5), (5, 3), (4, 7), (7, 2), (1, 3), (6, 6 + 1)]
LINES = [(5, 8), (8, 5), (7, 20), (1, 3)]
HOW = {"bicubic": {}, "bicubic_antialias": {"antialias": True}}


def table(rows: int) -> np.ndarray:
    """Numbers with three digits, so that the file stays small."""
    return np.random.default_rng(rows).integers(-999, 1000, (rows, WIDTH)) / 1000


def rounded(x: np.ndarray) -> list:
    """Twelve digits."""
    return np.round(x, 12).tolist()


def main() -> None:
    """Writes the file."""
    grids, lines = [], []
    for old, new in GRIDS:
        cells = table(old * old)
        image = torch.tensor(cells.reshape(1, old, old, WIDTH)).permute(0, 3, 1, 2)
        for method, kwargs in HOW.items():
            found = interpolate(image, (new, new), mode="bicubic", align_corners=False, **kwargs)
            wanted = found.permute(0, 2, 3, 1).reshape(-1, WIDTH).numpy()
            case = dict(method=method, old=old, new=new, table=rounded(cells))
            grids.append(case | dict(wanted=rounded(wanted)))
    for old, new in LINES:
        rows = table(old)
        found = interpolate(torch.tensor(rows.T[None]), new, mode="linear", align_corners=False)
        wanted = rounded(found[0].T.numpy())
        lines.append(dict(old=old, new=new, table=rounded(rows), wanted=wanted))
    content = {"torch": torch.__version__, "grids": grids, "lines": lines}
    TARGET.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
