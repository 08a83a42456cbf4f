"""LVIS with GLIP: names in chunks, standard and fixed AP, one category a detection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grounding_dino.engine.trainer import Trainer
from grounding_dino.modeling.meta_arch.glip import GLIP

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

NAME, NUM_PICTURES, IDS = "test_lvis_glip", 3, [4, 9, 30, 31, 77]
WORDS = ["cat", "hair drier", "cat", "red circle", "tv"]  # two categories of LVIS may be asked for by one name


@pytest.fixture
def lvis(tmp_path: Path) -> Iterator[Path]:
    """The json of a registered set of three pictures in LVIS's format, with five categories of three frequencies."""
    images: list[dict[str, Any]] = []
    annotations = []
    for number in range(NUM_PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        size = {"height": 48, "width": 64, "file_name": str(tmp_path / f"{number}.png")}
        images.append({"id": number, **size, "neg_category_ids": IDS, "not_exhaustive_category_ids": []})
        for category in IDS:
            box = {"bbox": [4.0 + category % 9, 6.0, 30.0, 25.0], "area": 750.0, "segmentation": []}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": category, **box})
    for image in images:
        image["neg_category_ids"] = []
    categories = [
        {"id": i, "name": w, "frequency": f, "image_count": 3, "instance_count": 3}
        for i, w, f in zip(IDS, WORDS, "rrcff")
    ]
    file = tmp_path / "lvis.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    keys = ("file_name", "height", "width")
    records = [{**{key: i[key] for key in keys}, "image_id": i["id"], "annotations": []} for i in images]
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(
        json_file=str(file),
        evaluator_type="lvis",
        thing_classes=WORDS,
        thing_dataset_id_to_contiguous_id={number: place for place, number in enumerate(IDS)},
    )
    yield file
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.mark.parametrize(("at_once", "prompts"), [(0, 1), (2, 3)])
def test_standard_and_fixed_ap(
    tiny_glip_cfg: CfgNode, tiny_glip: GLIP, lvis: Path, tmp_path: Path, at_once: int, prompts: int
) -> None:
    tiny_glip_cfg.merge_from_list(
        [
            *("DATASETS.TEST", (NAME,), "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(tmp_path / "out")),
            *("TEST.CATEGORIES_PER_PROMPT", at_once, "TEST.DETECTIONS_PER_IMAGE", 300),
        ]
    )
    tiny_glip.categories_per_prompt = at_once
    answers: dict[int, dict[str, Any]] = {}
    forward = tiny_glip.forward

    def remembered(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = forward(batch)
        answers.update((inputs["image_id"], answer) for inputs, answer in zip(batch, found))
        return found

    tiny_glip.forward = remembered  # type: ignore[method-assign]
    results = Trainer.test(tiny_glip_cfg, tiny_glip)
    assert list(results) == ["bbox", "bbox_fixed"] and {"AP", "APr", "APc", "APf"} <= set(results["bbox"])
    folder = tmp_path / "out/inference" / NAME
    protocol = json.loads((folder / "metrics.json").read_text())["protocol"]
    assert protocol["prompt"].count(" | ") == prompts - 1
    assert "over 0.05 (SCORE_THRESHOLD)" in protocol["detections"] and "300 best" in protocol["detections"]
    assert ("candidates" in answers[0]) == (prompts > 1)
    written = json.loads((folder / "lvis_instances_results.json").read_text())
    for image, answer in answers.items():
        found = answer["instances"]
        own = [row for row in written if row["image_id"] == image]
        assert [row["category_id"] for row in own] == [IDS[i] for i in found.pred_classes.tolist()]
        assert torch.allclose(torch.tensor([row["score"] for row in own]), found.scores)
        assert {row["category_id"] for row in own} <= set(IDS) and own
