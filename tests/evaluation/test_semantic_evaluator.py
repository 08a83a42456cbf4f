"""Semantic measures by cases counted by hand, and their evaluator on real files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from grounding_dino.evaluation.build import check_evaluation
from grounding_dino.evaluation.semantic_evaluator import SemanticEvaluator
from grounding_dino.evaluation.semantic_iou import boundary, boundary_counts, confusion, semantic_metrics

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

NAMES = ["sky", "road", "sea-side"]
TRUTH = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 255]])
FOUND = np.array([[0, 0, 0, 1], [0, 2, 1, 1], [1, 1, 1, 2]])
NAME = "test_evaluation_semantic"


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Callable[..., SemanticEvaluator]]:
    """`register(*maps, **metadata)`: an evaluator of pictures 0.jpg, 1.jpg, ... with these true maps."""

    def make(*maps: np.ndarray, distributed: bool = True, **metadata: Any) -> SemanticEvaluator:
        records = []
        for number, labels in enumerate(maps):
            path = tmp_path / f"{number}.png"
            Image.fromarray(labels.astype(np.uint8)).save(path)
            records.append({"file_name": f"{number}.jpg", "sem_seg_file_name": str(path)})
        DatasetCatalog.register(NAME, lambda: records)
        MetadataCatalog.get(NAME).set(**{"stuff_classes": NAMES, "ignore_label": 255, **metadata})
        return SemanticEvaluator(NAME, distributed)

    yield make
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def scores(labels: np.ndarray, num_classes: int = len(NAMES)) -> dict[str, torch.Tensor]:
    """A model's output whose best classes are `labels`."""
    return {"sem_seg": torch.nn.functional.one_hot(torch.from_numpy(labels), num_classes).permute(2, 0, 1).float()}


def test_metrics_counted_by_hand(register: Callable[..., SemanticEvaluator]) -> None:
    evaluator = register(TRUTH)
    evaluator.process([{"file_name": "0.jpg"}], [scores(FOUND)])
    metrics = evaluator.evaluate()["sem_seg"]  # type: ignore[index]
    # sky: 4 of 6 found, nothing else taken for it; road: 5 of 5 found, and 1 of the sky; the side is not in the truth
    sky, road = 4 / 6, 5 / 6
    expected = {
        **{"mIoU": (sky + road) / 2, "fwIoU": (sky * 6 + road * 5) / 11, "mACC": (4 / 6 + 1) / 2, "pACC": 9 / 11},
        **{"IoU-sky": sky, "IoU-road": road, "ACC-sky": 4 / 6, "ACC-road": 1.0},
    }
    assert {name: metrics[name] for name in expected} == pytest.approx({n: 100 * v for n, v in expected.items()})
    assert np.isnan(metrics["IoU-sea-side"]) and np.isnan(metrics["ACC-sea-side"])


def test_the_truth_itself_scores_100_whatever_is_found_in_ignored_pixels(
    register: Callable[..., SemanticEvaluator],
) -> None:
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (4, 6)), np.ones((25, 25), dtype=np.int64))
    ignored = rng.random(labels.shape) < 0.1
    evaluator = register(np.where(ignored, 255, labels))
    evaluator.process([{"file_name": "0.jpg"}], [scores(np.where(ignored, rng.integers(0, 3, labels.shape), labels))])
    metrics = evaluator.evaluate()["sem_seg"]  # type: ignore[index]
    assert set(metrics.values()) == {100.0}


def test_boundaries_are_rings_of_a_width_by_the_diagonal() -> None:
    mask = np.zeros((60, 80), dtype=bool)  # diagonal 100: 2 pixels
    mask[10:30, 20:40] = True
    ring = mask.copy()
    ring[12:28, 22:38] = False
    assert (boundary(mask) == ring).all()
    inner = boundary(np.ones((60, 80), dtype=bool))  # the picture's edge is a border
    assert inner.sum() == 60 * 80 - 56 * 76 and not inner[2:-2, 2:-2].any()
    assert boundary(np.ones((3, 3), dtype=bool)).sum() == 8


def test_boundary_iou_counted_by_hand() -> None:
    truth = np.zeros((60, 80), dtype=np.int64)
    truth[10:30, 20:40] = 1
    found = np.zeros((60, 80), dtype=np.int64)
    found[10:30, 21:41] = 1  # the true square moved by one column
    shared, either = boundary_counts(truth, found, 2)[:, 1]
    # Rings of 20 x 20 - 16 x 16 = 144. Shared: 4 full rows of 19 columns, and below them 16 rows with a column a side.
    assert (shared, either) == (4 * 19 + 16 * 2, 2 * 144 - (4 * 19 + 16 * 2))
    metrics = semantic_metrics(confusion(truth, found, 2), boundary_counts(truth, found, 2), ["a", "b"])
    assert metrics["BoundaryIoU-b"] == pytest.approx(100 * 108 / 180)
    assert metrics["IoU-b"] == pytest.approx(100 * 380 / 420) and metrics["min(IoU, B-Iou)-b"] == pytest.approx(60.0)
    assert metrics["mBoundaryIoU"] == pytest.approx((60.0 + metrics["BoundaryIoU-a"]) / 2)


def test_nothing_to_measure_is_nan(register: Callable[..., SemanticEvaluator]) -> None:
    metrics = register().evaluate()["sem_seg"]  # type: ignore[index]
    assert all(np.isnan(value) for value in metrics.values())


def test_faults_are_errors_that_name_the_file(register: Callable[..., SemanticEvaluator]) -> None:
    evaluator = register(TRUTH, TRUTH + 3)
    with pytest.raises(ValueError, match=r"'0\.jpg' has the size \(3, 3\) .* truth '.*0\.png' \(3, 4\)"):
        evaluator.process([{"file_name": "0.jpg"}], [scores(FOUND[:, :3])])
    with pytest.raises(ValueError, match=r"1\.png' has pixels of the class 3, but .* has 3 classes"):
        evaluator.process([{"file_name": "1.jpg"}], [scores(FOUND)])
    with pytest.raises(ValueError, match=r"scores of 4 classes, but .* has 3"):
        evaluator.process([{"file_name": "0.jpg"}], [scores(FOUND, 4)])


def test_a_set_without_maps_of_classes_ends_a_run_at_its_start(
    register: Callable[..., SemanticEvaluator], tiny_cfg: CfgNode
) -> None:
    register(TRUTH, evaluator_type="sem_seg")
    tiny_cfg.merge_from_list(["MODEL.MASK_ON", True, "TEST.SEMANTIC_ON", True])
    check_evaluation(tiny_cfg, NAME, DatasetCatalog.get(NAME))
    with pytest.raises(ValueError, match=r"'7\.jpg' of .* has no sem_seg_file_name"):
        check_evaluation(tiny_cfg, NAME, [{"file_name": "7.jpg"}])
    tiny_cfg.TEST.SEMANTIC_ON = False
    with pytest.raises(ValueError, match="needs 'sem_seg', .* TEST.SEMANTIC_ON is False"):
        check_evaluation(tiny_cfg, NAME, DatasetCatalog.get(NAME))


def test_a_coloured_map_is_an_error(register: Callable[..., SemanticEvaluator], tmp_path: Path) -> None:
    evaluator = register(TRUTH)
    Image.fromarray(np.zeros((3, 4, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"0\.png' has 3 channels"):
        evaluator.process([{"file_name": "0.jpg"}], [scores(FOUND)])
