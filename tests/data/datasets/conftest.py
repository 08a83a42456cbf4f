import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def data_root(monkeypatch, tmp_path):
    """An empty folder of data sets, and a cache of its own."""
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    (tmp_path / "sets").mkdir()
    return tmp_path / "sets"


@pytest.fixture
def write_picture():
    """Writes a black picture of 60 x 40."""

    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8)).save(path)

    return write


@pytest.fixture
def write_coco(data_root, write_picture):
    """Writes a COCO json below `data_root`: picture i has one object, of category i (modulo their number).

    `pictures` are (file_name in the json, path below `data_root`, further keys).
    """

    def write(json_file, names, pictures, first_id=1):
        content = {"categories": [{"id": first_id + i, "name": name} for i, name in enumerate(names)]}
        content["images"] = [
            {"id": i + 1, "file_name": file_name, "height": 40, "width": 60, **keys}
            for i, (file_name, _, keys) in enumerate(pictures)
        ]
        content["annotations"] = [
            {
                "id": i + 1,
                "image_id": i + 1,
                "category_id": first_id + i % len(names),
                "bbox": [1.0, 2.0, 10.0, 20.0],
                "area": 200.0,
                "iscrowd": 0,
            }
            for i in range(len(pictures))
        ]
        for _, path, _ in pictures:
            write_picture(data_root / path)
        (data_root / json_file).parent.mkdir(parents=True, exist_ok=True)
        (data_root / json_file).write_text(json.dumps(content))
        return content

    return write
