"""Pictures with hundreds of small objects: the denoising budget and the matcher's chunks bound what they take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.engine.memory import LiveBytes
from grounding_dino.engine.trainer import Trainer
from grounding_dino.modeling.losses import matcher

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image

OBJECTS = 375  # the most in one picture of the data set "nuclei"


@pytest.fixture
def dense_cfg(train_cfg: Callable[..., CfgNode], tmp_path: Path) -> Callable[..., CfgNode]:
    """As `train_cfg`, on one picture of 256 x 256 with 375 nuclei."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 40, (256, 256, 3), dtype=np.uint8)
    annotations: list[dict[str, Any]] = []
    for number in range(OBJECTS):
        x, y = 2 + 12 * (number % 21), 2 + 12 * (number // 21)
        width, height = (int(side) for side in rng.integers(6, 11, 2))
        pixels[y : y + height, x : x + width] = 200
        box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
        annotations.append({"id": number + 1, "image_id": 1, "category_id": 1, **box})
    Image.fromarray(pixels).save(tmp_path / "nuclei.png")
    images = [{"id": 1, "file_name": "nuclei.png", "height": 256, "width": 256}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nucleus"}]}
    (tmp_path / "nuclei.json").write_text(json.dumps(content))

    def build(*opts: Any, output: str = "run") -> CfgNode:
        data = ("DATASETS.EXTRA", [f"nuclei={tmp_path / 'nuclei.json'}:{tmp_path}"], "DATASETS.TRAIN", ("nuclei",))
        size = ("INPUT.MIN_SIZE_TRAIN", (256,), "INPUT.MAX_SIZE_TRAIN", 256, "SOLVER.IMS_PER_BATCH", 1)
        model = ("MODEL.QUERY_SELECTION.NUM_QUERIES", 400, "SOLVER.MAX_ITER", 1)
        return train_cfg(*data, *size, *model, *opts, output=output)

    return build


def losses_and_peak(cfg: CfgNode) -> tuple[list[float], int]:
    trainer = Trainer(cfg)
    with LiveBytes([*trainer.model.parameters(), *trainer.model.buffers()]) as counter:
        trainer.train()
    return [value for value, _ in trainer.storage.history("total_loss").values()], counter.peak


@pytest.mark.slow
def test_the_denoising_budget_bounds_the_memory_of_a_dense_picture(dense_cfg: Callable[..., CfgNode]) -> None:
    few, least = losses_and_peak(dense_cfg("MODEL.DENOISING.MAX_QUERIES", 100, output="few"))
    default, bounded = losses_and_peak(dense_cfg(output="default"))
    # what 2000 queries in each half, in place of 100, come to without the bound
    many = ("MODEL.DENOISING.NUM_QUERIES", 2000)
    capped, peak = losses_and_peak(dense_cfg(*many, output="capped"))
    _, free = losses_and_peak(dense_cfg(*many, "MODEL.DENOISING.MAX_QUERIES", 10**6, output="free"))
    assert np.isfinite([*few, *default, *capped]).all()
    assert least < bounded < peak < free, "50 objects once, 375 once, twice, five times"


def test_chunks_of_the_cost_matrix_bound_its_temporaries_and_change_no_loss(
    dense_cfg: Callable[..., CfgNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    without = ("MODEL.DENOISING.ENABLED_ON", False)
    expected, _ = losses_and_peak(dense_cfg(*without, output="whole"))
    monkeypatch.setattr(matcher, "_MAX_CHUNK", 20000)
    found, _ = losses_and_peak(dense_cfg(*without, output="chunks"))
    assert found == expected
