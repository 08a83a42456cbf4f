"""The model in the package learns two pictures by heart."""

from __future__ import annotations

import json
from pathlib import Path

from grounding_dino.data.shapes.prepare import SplitRecipe, prepare_split
from grounding_dino.engine.trainer import Trainer
from grounding_dino.model_zoo import load_cfg

import pytest

SIZE = 128


def with_zones(annotations: Path) -> Path:
    """The same pictures with a word the model does not know, for boxes twice as large as the shapes in them."""
    content = json.loads(annotations.read_text())
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        left, top = max(0, x - width / 2), max(0, y - height / 2)
        right, bottom = min(SIZE, x + 1.5 * width), min(SIZE, y + 1.5 * height)
        row.update(category_id=1, bbox=[left, top, right - left, bottom - top])
        del row["segmentation"]
    content["categories"] = [{"id": 1, "name": "zone"}]
    file = annotations.parent / "zones.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.slow
def test_thirty_steps_on_two_pictures_take_the_box_losses_below_a_tenth(tmp_path: Path, forget_data_sets: None) -> None:
    prepare_split(SplitRecipe("val", 2, SIZE, 2024), tmp_path, progress=False)
    zones = with_zones(tmp_path / "annotations" / "val.json")
    opts = [
        *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "grounding_dino://assets/shapes_tiny.safetensors"),
        *("DATASETS.EXTRA", [f"zones={zones}:{tmp_path / 'val'}"], "DATASETS.TRAIN", ("zones",), "DATASETS.TEST", ()),
        *("INPUT.MIN_SIZE_TRAIN", (SIZE,), "INPUT.RANDOM_FLIP", "none", "DATALOADER.NUM_WORKERS", 0),
        *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 30, "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 5e-4),
        *("SEED", 3, "OUTPUT_DIR", str(tmp_path / "run")),
    ]
    trainer = Trainer(load_cfg("shapes_tiny", opts))
    trainer.resume_or_load(False)
    trainer.train()
    for name in ("loss_l1", "loss_giou"):
        values = [value for value, _ in trainer.storage.history(name).values()]
        assert len(values) == 30 and values[-1] < values[0] / 10, name
