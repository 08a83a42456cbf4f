"""Closed-set models through the whole of `--eval-only`: from columns of a class head to AP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grounding_dino.checkpoint.saving import save_checkpoint
from grounding_dino.cli.train import main
from grounding_dino.layers.box_ops import box_xyxy_to_cxcywh
from grounding_dino.model_zoo import load_cfg
from grounding_dino.modeling.meta_arch.generalized_dino import GeneralizedDINO
from grounding_dino.structures import DecoderOutput, FeaturePyramid, Predictions

import numpy as np
import pytest
import torch
from PIL import Image

SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.EMBED_DIM": 64,
    "MODEL.BACKBONE.NAME": "SwinTransformer",
    "MODEL.BACKBONE.WEIGHTS": "",
    "MODEL.SWIN.EMBED_DIM": 8,
    "MODEL.SWIN.DEPTHS": [1, 1, 1, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 1, 1, 1],
    "MODEL.SWIN.WINDOW_SIZE": 4,
    "MODEL.PIXEL_DECODER.IN_FEATURES": ["stage2", "stage3", "stage4"],
    "MODEL.PIXEL_DECODER.NUM_LAYERS": 1,
    "MODEL.PIXEL_DECODER.FFN_DIM": 16,
    "MODEL.TRANSFORMER_DECODER.NUM_LAYERS": 1,
    "MODEL.TRANSFORMER_DECODER.FFN_DIM": 16,
    "MODEL.QUERY_SELECTION.NUM_QUERIES": 20,
    "INPUT.MIN_SIZE_TEST": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.TRAIN": ("gaps",),
    "DATASETS.TEST": ("gaps",),
}
OBJECTS = 8  # of a picture: the fewer pictures, the faster pycocotools
COCO_IDS = load_cfg("dino/r50_4scale_12ep").MODEL.CLASS_HEAD.CATEGORY_IDS


class Truth:
    """A data set whose pictures, told apart by their widths, have up to OBJECTS each, and answers that say so."""

    def __init__(self, folder: Path, ids: list[int]) -> None:
        self.answers: dict[int, Predictions] = {}
        images, annotations = [], []
        for number, start in enumerate(range(0, len(ids), OBJECTS)):
            classes = ids[start : start + OBJECTS]
            width, height = 64 + number, 48
            Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(folder / f"{number}.png")
            images.append({"id": number + 1, "file_name": f"{number}.png", "height": height, "width": width})
            corners = torch.tensor([[4.0 + 4 * i, 6.0, 30.0 + 4 * i, 40.0 - i] for i in range(len(classes))])
            for box, label in zip(corners.tolist(), classes):
                x1, y1, x2, y2 = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number + 1,
                        "category_id": label,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                    }
                )
            logits = torch.full((len(classes), 91), -9.0)
            logits[range(len(classes)), classes] = 9.0
            scale = torch.tensor([width, height, width, height])
            self.answers[width] = Predictions(logits, box_xyxy_to_cxcywh(corners / scale))
        categories = [{"id": i, "name": f"class {i}"} for i in sorted(ids)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "gaps.json").write_text(json.dumps(content))

    def detect(self, model: Any, features: FeaturePyramid, prompts: Any) -> DecoderOutput:
        found = [self.answers[width] for _, width in features.frames]
        logits, boxes = torch.stack([p.pred_logits for p in found]), torch.stack([p.pred_boxes for p in found])
        return DecoderOutput([Predictions(logits, boxes)])


def evaluate(folder: Path, ids: list[int], **changes: Any) -> list[str]:
    options = {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
    options["OUTPUT_DIR"] = str(folder / "out")
    pairs = [item for pair in options.items() for item in pair]
    if not (folder / "model.pth").exists():
        model = GeneralizedDINO(load_cfg("dino/r50_4scale_12ep", pairs))
        save_checkpoint(str(folder / "model.pth"), model.state_dict())
    return [
        *("--config-file", "dino/r50_4scale_12ep", "--eval-only", "--num-gpus", "0"),
        *("--dataset", f"gaps={folder / 'gaps.json'}:{folder}"),
        *map(str, pairs),
        *("MODEL.WEIGHTS", str(folder / "model.pth")),
    ]


@pytest.mark.parametrize("ids", [list(COCO_IDS), [90, 3, 17]], ids=["the 80 of COCO", "three with gaps"])
def test_columns_by_category_id_score_100(
    ids: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_before: None
) -> None:
    """91 columns, of which COCO's data sets use 80 ids with gaps: logits equal to the truth have an AP of 100."""
    truth = Truth(tmp_path, ids)
    monkeypatch.setattr(GeneralizedDINO, "detect", lambda *args: truth.detect(*args))
    assert main(evaluate(tmp_path, ids, MODEL__CLASS_HEAD__CATEGORY_IDS=sorted(ids))) in (0, None)
    (found,) = (tmp_path / "out" / "inference").glob("*/metrics.json")
    metrics = json.loads(found.read_text())["metrics"]["bbox"]
    assert metrics["AP"] == pytest.approx(100.0) and metrics["AP75"] == pytest.approx(100.0)


def test_a_data_set_of_other_classes_is_refused(tmp_path: Path, as_before: None) -> None:
    Truth(tmp_path, [90, 3, 17])
    with pytest.raises((SystemExit, ValueError)) as refused:
        main(evaluate(tmp_path, [90, 3, 17]))
    assert "has 3 classes, but MODEL.CLASS_HEAD.CATEGORY_IDS lists 80" in str(refused.value)


def test_an_evaluation_takes_its_weights_whole_or_not_at_all(tmp_path: Path, as_before: None) -> None:
    """Though the recipe's training may take what fits."""
    Truth(tmp_path, [90, 3, 17])
    arguments = evaluate(tmp_path, [90, 3, 17])
    with pytest.raises((SystemExit, ValueError, RuntimeError)) as refused:
        main(
            [
                *arguments,
                "MODEL.CLASS_HEAD.NUM_CLASSES",
                "3",
                "MODEL.CLASS_HEAD.CATEGORY_IDS",
                "[]",
                "MODEL.WARM_START_ON",
                "True",
            ]
        )
    assert "does not fit the model" in str(refused.value)
