"""A generated data set in LVIS's format, registered, and detections of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  (makes detectron2 importable)

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

SIZE = 320
CATEGORY_IDS = (2, 3, 7, 11, 40)
NUM_IMAGES = 14

Detected = dict[int, dict[str, Any]]  # image id -> output of a model


def lvis_content(seed: int = 0) -> dict[str, Any]:
    """Crowded pictures with negative and not exhaustively annotated categories, ignored objects, small and large."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for image_id in range(10, 10 + NUM_IMAGES):
        shown = rng.choice(CATEGORY_IDS, rng.integers(0, 4), replace=False).tolist()
        absent = [number for number in CATEGORY_IDS if number not in shown]
        images.append(
            {
                **{"id": image_id, "height": SIZE, "width": SIZE, "file_name": f"{image_id}.jpg"},
                "neg_category_ids": absent[: int(rng.integers(0, len(absent) + 1))],
                "not_exhaustive_category_ids": [number for number in shown if rng.random() < 0.3],
            }
        )
        for number in shown:
            for _ in range(int(rng.integers(1, 9))):
                side = np.exp(rng.uniform(np.log(8), np.log(200), 2))
                box = np.float32([*(rng.random(2) * (SIZE - side)), *side]).astype(float)
                annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": number}
                annotations.append(
                    {
                        **annotation,
                        **{"bbox": box.tolist(), "area": float(box[2] * box[3] * rng.uniform(0.5, 1))},
                        **{"segmentation": [], "ignore": int(rng.random() < 0.1)},
                    }
                )
    frequencies = dict(zip(CATEGORY_IDS, "rrcff"))
    categories = [{"id": n, "name": f"thing{n}", "frequency": frequencies[n]} for n in CATEGORY_IDS]
    return {"images": images, "annotations": annotations, "categories": categories}


def as_output(boxes: Any, scores: Any, classes: Any) -> dict[str, Any]:
    """A model's output, boxes XYXY."""
    instances = Instances((SIZE, SIZE))
    instances.pred_boxes = Boxes(torch.as_tensor(np.asarray(boxes, dtype=np.float32)).reshape(-1, 4))
    instances.scores = torch.as_tensor(np.asarray(scores, dtype=np.float32))
    instances.pred_classes = torch.as_tensor(np.asarray(classes, dtype=np.int64))
    return {"instances": instances}


def perfect(content: dict[str, Any]) -> Detected:
    """The objects themselves, as outputs by picture."""
    outputs = {}
    ids = sorted(category["id"] for category in content["categories"])
    for image in content["images"]:
        objects = [item for item in content["annotations"] if item["image_id"] == image["id"]]
        boxes = np.array([item["bbox"] for item in objects], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        outputs[image["id"]] = as_output(boxes, [0.9] * len(boxes), [ids.index(o["category_id"]) for o in objects])
    return outputs


def noisy(content: dict[str, Any], seed: int = 1, false_alarms: int = 15) -> Detected:
    """Objects moved, doubled, some misnamed, and boxes out of nowhere; all scores differ."""
    rng = np.random.default_rng(seed)
    outputs = {}
    for image_id, output in perfect(content).items():
        instances = output["instances"]
        boxes = instances.pred_boxes.tensor.numpy().repeat(2, axis=0)
        boxes = boxes + rng.normal(0, 0.06, boxes.shape) * (boxes[:, 2:] - boxes[:, :2]).repeat(2, axis=1)
        classes = instances.pred_classes.numpy().repeat(2)
        wrong = rng.random(len(classes)) < 0.15
        classes[wrong] = rng.integers(0, len(content["categories"]), wrong.sum())
        corners = rng.random((false_alarms, 2)) * (SIZE - 60)
        extra = np.concatenate([corners, corners + rng.uniform(5, 60, (false_alarms, 2))], axis=1)
        boxes = np.concatenate([boxes, extra])
        classes = np.concatenate([classes, rng.integers(0, len(content["categories"]), false_alarms)])
        outputs[image_id] = as_output(boxes, rng.permutation(len(boxes)) / len(boxes) + image_id * 1e-4, classes)
    return outputs


class Generated:
    """What tests make data sets and outputs of models with."""

    content = staticmethod(lvis_content)
    output = staticmethod(as_output)
    perfect = staticmethod(perfect)
    noisy = staticmethod(noisy)


@pytest.fixture(scope="session")
def generated() -> type[Generated]:
    """`generated.content(seed)`, `.output(boxes, scores, classes)`, `.perfect(content)`, `.noisy(content, seed)`."""
    return Generated


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """`register(content, kind)`: the content as a registered data set; returns its name."""
    names: list[str] = []

    def make(content: dict[str, Any], kind: str = "lvis") -> str:
        name = f"test_evaluation_{kind}_{len(names)}"
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        ids = sorted(category["id"] for category in content["categories"])
        names.append(name)
        DatasetCatalog.register(name, lambda: [{"image_id": image["id"]} for image in content["images"]])
        MetadataCatalog.get(name).set(
            json_file=str(path),
            evaluator_type=kind,
            thing_classes=[f"thing{number}" for number in ids],
            thing_dataset_id_to_contiguous_id={number: place for place, number in enumerate(ids)},
        )
        return name

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def register_records() -> Iterator[Callable[[list[dict[str, Any]]], str]]:
    """`register_records(records)`: the records as a registered data set; returns its name."""
    names: list[str] = []

    def make(records: list[dict[str, Any]]) -> str:
        names.append(f"test_evaluation_records_{len(names)}")
        DatasetCatalog.register(names[-1], lambda: records)
        return names[-1]

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
