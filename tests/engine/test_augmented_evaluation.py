"""Semantic evaluation with test-time augmentation, through `--eval-only` on files, with a tiny Mask DINO."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from grounding_dino.cli.train import main
from grounding_dino.engine.augmented_evaluation import check_augmentation
from grounding_dino.model_zoo import build_model, load_cfg

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

NAME = "test_augmented_sem_seg"
CLASSES = ["left", "right"]
CONFIG = "shapes_tiny_panoptic"
OPTS = [
    *(
        "MODEL.WEIGHTS",
        "",
        "MODEL.DEVICE",
        "cpu",
        "MODEL.EMBED_DIM",
        32,
        "MODEL.MASK_HEAD.EMBED_DIM",
        32,
        "MODEL.CLASS_HEAD.NUM_CLASSES",
        2,
    ),
    *("MODEL.TIMM.OPTIONS.channels", [8, 8, 16, 16], "MODEL.TIMM.OPTIONS.layers", [1, 1, 1, 1]),
    *("MODEL.PIXEL_DECODER.NUM_LAYERS", 1, "MODEL.PIXEL_DECODER.FFN_DIM", 32, "MODEL.DENOISING.NUM_LABELS", 2),
    *("MODEL.TRANSFORMER_DECODER.NUM_LAYERS", 1, "MODEL.TRANSFORMER_DECODER.FFN_DIM", 32),
    *("MODEL.QUERY_SELECTION.NUM_QUERIES", 6, "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TEST", 64),
    *("INPUT.MAPPER", "SemanticMapper", "DATASETS.TEST", (NAME,), "DATASETS.TRAIN", ()),
    *("TEST.PANOPTIC_ON", False, "TEST.INSTANCE_ON", False, "TEST.SEMANTIC_ON", True),
]
AUGMENTED = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (32, 64), "TEST.AUG.MAX_SIZE", 96]


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[Path]:
    """A semantic data set of two pictures, and the folder it is in."""
    rng = np.random.default_rng(0)
    records = []
    for name in "ab":
        paths = {"file_name": str(tmp_path / f"{name}.jpg"), "sem_seg_file_name": str(tmp_path / f"{name}.png")}
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(paths["file_name"])
        Image.fromarray(np.kron([[0, 1]], np.ones((40, 30))).astype(np.uint8)).save(paths["sem_seg_file_name"])
        records.append({**paths, "image_id": name, "height": 40, "width": 60})
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(stuff_classes=CLASSES, ignore_label=255, evaluator_type="sem_seg")
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_eval_only_measures_with_and_without_augmentation(pictures: Path) -> None:
    cfg = load_cfg(CONFIG, OPTS)
    torch.manual_seed(0)
    torch.save(build_model(cfg).state_dict(), pictures / "weights.pth")
    out = pictures / "out"
    options = [*OPTS, *AUGMENTED, "MODEL.WEIGHTS", str(pictures / "weights.pth"), "OUTPUT_DIR", str(out)]
    main(["--eval-only", "--config-file", CONFIG, "--num-gpus", "0", *map(str, options)])
    summary = json.loads((out / "inference" / "summary.json").read_text())["data sets"][NAME]
    assert set(summary) == {"sem_seg", "sem_seg_TTA"}
    assert set(summary["sem_seg"]) == set(summary["sem_seg_TTA"]) >= {"mIoU", "pACC"}
    once = json.loads((out / "inference" / NAME / "metrics.json").read_text())
    again = json.loads((out / "inference_TTA" / NAME / "metrics.json").read_text())
    assert "augmentation" not in once["protocol"]
    assert again["protocol"]["augmentation"] == (
        "mean over pictures with their shorter side 32, 64, longer at most 96 pixels, and over their mirror images"
    )


def test_augmentation_without_semantic_results_is_an_error(pictures: Path) -> None:
    check_augmentation(load_cfg(CONFIG, OPTS))
    check_augmentation(load_cfg(CONFIG, [*OPTS, *AUGMENTED]))
    with pytest.raises(ValueError, match=r"TEST.AUG.ENABLED is True, but .* while TEST.SEMANTIC_ON is False"):
        check_augmentation(load_cfg(CONFIG, [*OPTS, *AUGMENTED, "TEST.SEMANTIC_ON", False]))
    with pytest.raises(ValueError, match="while MODEL.MASK_ON is False"):
        check_augmentation(load_cfg("swin_t_ogc", AUGMENTED))
    with pytest.raises(ValueError, match="none of DATASETS.TEST .* has semantic truth"):
        check_augmentation(load_cfg(CONFIG, [*OPTS, *AUGMENTED, "DATASETS.TEST", ("shapes_val",)]))
