"""A tiny COCO data set and configurations that train on it in milliseconds a step."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  (makes detectron2 importable)
from grounding_dino.engine.trainer import Trainer

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from PIL import Image

CATEGORIES = {90: "red square", 3: "green square", 17: "blue square"}  # ids with gaps, in no order
COLOURS = {90: (220, 30, 30), 3: (30, 200, 30), 17: (30, 30, 220)}


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """A trainer sets up loggers, which would keep later tests from seeing what is logged."""
    loggers = [logging.getLogger(name) for name in ("grounding_dino", "detectron2", "fvcore")]
    before = [(log, log.handlers[:], log.propagate, log.level) for log in loggers]
    for log in loggers:
        log.propagate = True
    yield
    for log, handlers, propagate, level in before:
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model gains nothing from a second thread, and waits long for one on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """Eight pictures of 64 x 64 or 48 x 64 with one or two coloured squares, and `boxes.json` about them."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, 9):
        height, width = (64, 48) if number % 3 == 0 else (48, 64)
        pixels = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
        for part in range(1 + number % 2):
            category = list(CATEGORIES)[(number + part) % 3]
            x, y, size = 2 + 24 * part, int(rng.integers(2, 20)), int(rng.integers(12, 20))
            pixels[y : y + size, x : x + size] = COLOURS[category]
            annotation = {"id": len(annotations) + 1, "image_id": 100 * number, "category_id": category}
            annotations.append({**annotation, "bbox": [x, y, size, size], "area": size**2, "iscrowd": 0})
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": 100 * number, "file_name": f"{number}.png", "height": height, "width": width})
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def forget_data_sets() -> Iterator[None]:
    """Data sets registered during the test are taken off again."""
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)


@pytest.fixture
def tiny_opts(coco_folder: Path) -> list[Any]:
    """KEY, VALUE pairs that, over the tiny model's, train it on the data set `squares`."""
    return [
        *("DATASETS.EXTRA", [f"squares={coco_folder / 'boxes.json'}:{coco_folder}"]),
        *("DATASETS.TRAIN", ("squares",), "DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 0),
        *("INPUT.MIN_SIZE_TRAIN", (48, 64), "INPUT.MAX_SIZE_TRAIN", 80, "INPUT.MIN_SIZE_TEST", 64),
        *("MODEL.TEXT_ENCODER.DROPOUT", 0.1, "MODEL.SWIN.DROP_PATH_RATE", 0.1),  # steps draw random numbers
        *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 4, "SOLVER.BASE_LR", 1e-3, "SOLVER.WARMUP_ITERS", 3),
        *("SOLVER.CHECKPOINT_PERIOD", 1000, "SEED", 3),
    ]


class _Interruption(Exception):
    pass


class _StopBefore(HookBase):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise _Interruption


@pytest.fixture
def stopped_before() -> Callable[[int, CfgNode], Trainer]:
    """`stopped_before(3, cfg)`: a training that ends before that iteration as a kill would end it: nothing is saved."""

    def train(iteration: int, cfg: CfgNode) -> Trainer:
        trainer = Trainer(cfg)
        trainer.resume_or_load(False)
        trainer.register_hooks([_StopBefore(iteration)])
        with pytest.raises(_Interruption):
            trainer.train()
        return trainer

    return train


@pytest.fixture
def train_cfg(
    tiny_cfg: CfgNode, tiny_opts: list[Any], tmp_path: Path, forget_data_sets: None
) -> Callable[..., CfgNode]:
    """`train_cfg(*opts, output="run")`: the tiny model's configuration with further KEY, VALUE pairs."""
    return _builder(tiny_cfg, tiny_opts, tmp_path)


@pytest.fixture
def glip_train_cfg(
    tiny_glip_cfg: CfgNode, tiny_opts: list[Any], tmp_path: Path, forget_data_sets: None
) -> Callable[..., CfgNode]:
    """As `train_cfg`, of the tiny GLIP."""
    return _builder(tiny_glip_cfg, tiny_opts, tmp_path)


def _builder(tiny: CfgNode, opts: list[Any], folder: Path) -> Callable[..., CfgNode]:
    def build(*more: Any, output: str = "run") -> CfgNode:
        cfg = tiny.clone()
        cfg.merge_from_list([*opts, "OUTPUT_DIR", str(folder / output), *more])
        return cfg

    return build
