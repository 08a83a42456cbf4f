"""Pictures whose size surprises: nearly without width, or other than their record says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from grounding_dino.data.mappers import build_mapper
from grounding_dino.model_zoo import load_cfg

import pytest
from detectron2.structures import BoxMode
from PIL import Image


def _record(folder: Path, size: tuple[int, int], said: tuple[int, int] | None = None) -> dict[str, Any]:
    Image.new("RGB", size, "white").save(folder / "picture.png")
    width, height = said or size
    box = {"bbox": [0, 0, 2, 1], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
    return {
        **{"file_name": str(folder / "picture.png"), "height": height, "width": width, "image_id": 1},
        **{"categories": ["line"], "annotations": [box]},
    }


@pytest.mark.parametrize("size", [(3000, 2), (2, 3000)])
@pytest.mark.parametrize("is_train", [True, False])
def test_a_line_of_pixels_keeps_one(tmp_path: Path, size: tuple[int, int], is_train: bool) -> None:
    mapper = build_mapper(load_cfg("shapes_tiny"), is_train=is_train)
    sample = mapper(_record(tmp_path, size))
    assert sample is not None and min(sample["image"].shape) == 1


def test_evaluation_goes_by_the_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A record with height and width exchanged: the picture counts, not a black one, and the log says so."""
    record = _record(tmp_path, (80, 40), said=(40, 80))
    with caplog.at_level(logging.WARNING):
        sample = build_mapper(load_cfg("shapes_tiny"), is_train=False)(record)
    assert sample is not None and (sample["height"], sample["width"]) == (40, 80)
    assert sample["image"].float().mean() == 255
    assert "picture.png is 40 x 80 (h x w), but its record says 80 x 40" in caplog.text


def test_training_leaves_such_a_picture_out(tmp_path: Path) -> None:
    assert build_mapper(load_cfg("shapes_tiny"), is_train=True)(_record(tmp_path, (80, 40), said=(40, 80))) is None
