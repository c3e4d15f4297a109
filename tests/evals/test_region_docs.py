"""The code of docs/regions.md that reads COCO's and GRIT's layouts."""

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipjax.data.sources import tar_index
from clipjax.evals import make_evaluators
from clipjax.evals.regions.retrieval import RegionRetrieval
from tests.evals.planted import LEFT, RIGHT, Planted, Same, scene


def documented(name):
    """What a block of docs/regions.md defines."""
    page = (Path(__file__).parents[2] / "docs" / "regions.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (block,) = (b for b in blocks if re.search(rf"^(def|class) {name}\b", b, re.MULTILINE))
    found = {}
    exec(block, found)
    return found[name]


def test_coco_is_read_as_documented(tmp_path):
    data = {
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "big_dog"}],
        "images": [
            {"id": 1, "file_name": "a.png"},
            {"id": 2, "file_name": "b.png"},
            {"id": 4, "coco_url": "http://x/val2017/c.png"},
        ],
        "annotations": [
            {"image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 12]},
            {"image_id": 4, "category_id": 5, "bbox": [8, 0, 4, 12], "iscrowd": 0},
            {"image_id": 1, "category_id": 5, "bbox": [8, 0, 4, 12], "iscrowd": 0},
            {"image_id": 1, "category_id": 5, "bbox": [0, 0, 12, 12], "iscrowd": 1},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(data))
    output = tmp_path / "regions.jsonl"
    documented("coco_regions")(tmp_path / "instances.json", output)
    (tmp_path / "val2017").mkdir()
    for name in ("a.png", "val2017/c.png"):
        Image.fromarray(scene(("cat", LEFT), ("dog", RIGHT))["image"]).save(tmp_path / name)
    entry = {
        "kind": "region_classification",
        "source": {"kind": "captions", "file": str(output)},
        "classes": f"{output}.classes.json",
        "box_format": "xywh_pixels",
    }

    class Decoding(Planted):
        def regions(self, params, images, boxes, how):
            arrays = [np.asarray(Image.open(io.BytesIO(image))) for image in images]
            return super().regions(params, arrays, boxes, how)

    evaluator = make_evaluators({"coco": entry}, Decoding())["coco"]
    assert evaluator.run(None)["mAcc"] == 1
    assert (evaluator.protocol["images"], evaluator.protocol["regions"]) == (2, 3)
    assert evaluator.protocol["classes"] == 2


def test_grit_is_read_as_documented(tmp_path):
    file = io.BytesIO()
    Image.fromarray(scene()["image"]).save(file, "PNG")
    caption = "a cat and the old dog"
    chunks = [[0, 5, 0, 0, 0.25, 1, 0.9], [10.0, 21.0, 0.5, 0, 1, 1, 0.8]]
    sample = {"png": file.getvalue()}
    sample["json"] = json.dumps({"caption": caption, "noun_chunks": chunks}).encode()
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for ending, data in sample.items():
            info = tarfile.TarInfo(f"0.{ending}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    tar_index.write(tar_index.scan(str(path)), tar_index.index_path(str(path)))
    record = documented("Grit")(str(path))[0]
    assert record["region_text"] == ["a cat", "the old dog"]
    assert record["boxes"] == [[0, 0, 0.25, 1], [0.5, 0, 1, 1]]
    evaluator = RegionRetrieval("grit", [record], Same())
    assert evaluator.run(None) == pytest.approx(evaluator.protocol["chance"])
