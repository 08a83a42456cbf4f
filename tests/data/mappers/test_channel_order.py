"""A configuration that reads BGR (GLIP's) sees the pictures of one that reads RGB, with the channels turned round."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grounding_dino.data.mappers import build_mapper
from grounding_dino.data.sample_drawing import draw_sample
from grounding_dino.model_zoo import load_cfg
from grounding_dino.text.prompt_builder import PromptBuilder

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

NAME = "test_channel_order"


@pytest.fixture
def record(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A picture of noise with an object."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    MetadataCatalog.get(NAME).thing_classes = ["cat", "dog"]
    box = {"bbox": [8, 8, 40, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0}
    yield {"file_name": str(tmp_path / "a.png"), "image_id": 1, "height": 64, "width": 96, "annotations": [box]}
    MetadataCatalog.pop(NAME)


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("colours", ["INPUT.COLOR_JITTER.PROBABILITY", "INPUT.COLOR_AUG_SSD_ON", None])
def test_samples_are_the_same_but_for_the_order(record: dict[str, Any], is_train: bool, colours: str | None) -> None:
    samples = {}
    for name, order in (("glip_t", "BGR"), ("swin_t_ogc", "RGB")):
        opts = ["DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,), "INPUT.MIN_SIZE_TRAIN", (60, 70)]
        opts += ["INPUT.MIN_SIZE_TEST", 80, "DATASETS.WEIGHTS", []]
        opts += [] if colours is None else [colours, 1.0 if colours.endswith("PROBABILITY") else True]
        cfg = load_cfg(name, opts)
        assert cfg.INPUT.FORMAT == order
        mapper = build_mapper(cfg, is_train)
        np.random.seed(7)
        samples[order] = mapper(dict(record))
    bgr, rgb = samples["BGR"]["image"].int(), samples["RGB"]["image"].int()
    # hues are whole numbers to OpenCV, and brightness sums channels in their order, which may round otherwise
    assert (bgr.flip(0) - rgb).abs().max() <= (1 if colours else 0)
    assert not torch.equal(bgr, rgb)


def test_drawings_show_true_colours(record: dict[str, Any]) -> None:
    """What `visualize_data` draws of a BGR sample is what it draws of an RGB one."""
    drawn = []
    for name in ("glip_t", "swin_t_ogc"):
        opts = ["DATASETS.TRAIN", (NAME,), "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.RANDOM_FLIP", "none"]
        cfg = load_cfg(name, opts)
        sample = build_mapper(cfg, is_train=True)({**record, "annotations": []})
        picture = draw_sample(sample, PromptBuilder(), cfg.INPUT.FORMAT)
        drawn.append(picture[: picture.shape[1] * 64 // 96])  # above the words, which are in another order
    assert np.array_equal(*drawn) and drawn[0].std() > 30
