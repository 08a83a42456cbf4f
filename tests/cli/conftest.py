"""A tiny data set and the command line of a run on it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import grounding_dino  # noqa: F401  (makes detectron2 importable)

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image


@pytest.fixture
def tools_leave_no_trace() -> Iterator[None]:
    """Loggers and registered data sets are as before afterwards."""
    loggers = [logging.getLogger(name) for name in ("grounding_dino", "detectron2", "fvcore")]
    before = [(log, log.handlers[:], log.propagate, log.level) for log in loggers]
    names = set(DatasetCatalog)
    yield
    for log, handlers, propagate, level in before:
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)
    for name in set(DatasetCatalog) - names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def as_before(tools_leave_no_trace: None) -> Iterator[None]:
    """A run, too, leaves no trace. One thread is enough for tiny models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def coco(tmp_path: Path) -> str:
    """`annotations.json:folder` of five pictures, one of them empty; category ids have gaps and are in no order."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, 6):
        pixels = rng.integers(0, 100, (48, 64, 3), dtype=np.uint8)
        pixels[10:30, 10 * number : 10 * number + 20] = (250, 20, 20) if number % 2 else (20, 20, 250)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": 7 * number, "file_name": f"{number}.png", "height": 48, "width": 64})
        if number == 5:
            continue
        annotation = {"id": number, "image_id": 7 * number, "category_id": 91 if number % 2 else 4}
        annotations.append({**annotation, "bbox": [10 * number, 10, 20, 20], "area": 400, "iscrowd": 0})
    categories = [{"id": 91, "name": "red box"}, {"id": 4, "name": "blue box"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return f"{tmp_path / 'boxes.json'}:{folder}"


@pytest.fixture
def command(tiny_cfg: CfgNode, coco: str, tmp_path: Path, as_before: None) -> Callable[..., list[str]]:
    """`command(*flags, opts=())`: the arguments of a tiny run on the data set `boxes`."""
    return _command(tiny_cfg, coco, tmp_path)


@pytest.fixture
def glip_command(tiny_glip_cfg: CfgNode, coco: str, tmp_path: Path, as_before: None) -> Callable[..., list[str]]:
    """As `command`, of a tiny GLIP."""
    return _command(tiny_glip_cfg, coco, tmp_path)


def _command(cfg: CfgNode, coco: str, folder: Path) -> Callable[..., list[str]]:
    cfg = cfg.clone()
    cfg.merge_from_list(["DATASETS.TRAIN", ("boxes",), "DATASETS.TEST", ("boxes",), "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (80,), "INPUT.MIN_SIZE_TEST", 80, "INPUT.MAX_SIZE_TRAIN", 120])
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SEED", 1, "MODEL.DEVICE", "cuda"])
    cfg.merge_from_list(["OUTPUT_DIR", str(folder / "out"), "MODEL.RELEASE.URL", ""])
    file = folder / "tiny.yaml"
    file.write_text(cfg.dump())

    def build(*flags: str, opts: tuple[str, ...] = ()) -> list[str]:
        return ["--config-file", str(file), "--dataset", f"boxes={coco}", *flags, *opts]

    return build
