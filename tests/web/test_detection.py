"""Requests: what is refused before a model runs, what the model is asked, time limits, what is given away."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

from grounding_dino.thresholds import CategoryThresholds
from grounding_dino.web.detection import Detector, Limits, Refused, Request, split_names
from grounding_dino.web.downloads import coco_of, safe_stem
from grounding_dino.web.models import ModelShelf, ServedModel
from grounding_dino.web.results import escaped, table_html

import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("blue star, red cross", ["blue star", "red cross"]),
        ("cat . traffic light .", ["cat", "traffic light"]),
        ("St. Bernard, cat\ndog;cat", ["St. Bernard", "cat", "dog"]),
        ("version 2.5", ["version 2.5"]),
        (" , .", []),
    ],
)
def test_names_in_a_text(text: str, names: list[str]) -> None:
    assert split_names(text) == names


class Asked:
    """Stands for a predictor: notes what it is asked for and finds one box."""

    def __init__(self) -> None:
        self.model, self.classes, self.options = nn.Identity(), ("disc",), {}

    def __call__(self, picture: Any, **options: Any) -> Instances:
        self.options = options
        found = Instances(picture.shape[:2], scores=torch.tensor([0.9]), pred_classes=torch.tensor([0]))
        found.pred_boxes, found.labels = Boxes(torch.tensor([[1.0, 2.0, 11.0, 22.0]])), ["disc"]
        return found


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def detector(asked: Asked) -> Detector:
    models = [ServedModel("reads", "reads"), ServedModel("fixed", "fixed", reads_text=False)]
    shelf = ModelShelf(models, lambda _: asked)  # type: ignore[arg-type, return-value]
    return Detector(shelf, Limits(megapixels=1), CategoryThresholds(0.4, {"cat": 0.6}))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (60, 40)).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(None, model="reads", text="cat"), "no picture yet"),
        (Request("a", model="other", text="cat"), "no model 'other' here. There are: reads, fixed"),
        (Request("a", model="reads", text=" "), "nothing to look for"),
        (Request("a", model="reads", text=" , "), "names nothing"),
        (Request("a", model="reads", text="x" * 6000), "6000 characters"),
        (Request("a", model="reads", text="cat", kind="Poem"), "'Poem'"),
        (Request("a", model="reads", text=["cat"]), "is a text"),  # type: ignore[arg-type]
        (Request("a", model="fixed", text="cat"), "fixed list of classes and reads no text"),
    ],
)
def test_refusals_before_a_model_runs(detector: Detector, request_: Request, said: str) -> None:
    with pytest.raises(Refused, match=said):
        detector.check(request_)


def test_what_the_predictor_is_asked(detector: Detector, asked: Asked, picture: str) -> None:
    def options_of(**fields: Any) -> dict[str, Any]:
        asyncio.run(detector(Request(picture, **fields)))
        assert asked.options.pop("image_format") == "RGB"
        return asked.options

    thresholds = {"box_threshold": 0.35, "text_threshold": 0.25}
    names = options_of(model="reads", text="cat, dog", not_wanted="fox")
    assert names == {**thresholds, "categories": ["cat", "dog"], "not_wanted": ["fox"]}
    assert options_of(model="reads", text="a cat", kind="Caption") == {**thresholds, "caption": "a cat"}
    assert options_of(model="fixed") == thresholds
    by_category = options_of(model="reads", text="cat, dog", by_category=True)["box_threshold"]
    assert (by_category.of("cat"), by_category.of("dog")) == (0.6, 0.35)


def test_a_request_that_takes_too_long_ends_in_words_and_its_model_stops(
    asked: Asked, detector: Detector, picture: str
) -> None:
    stopped = threading.Event()

    def wait_for_ever(picture: Any) -> None:
        while True:
            try:
                detector.shelf.check()
            except BaseException:
                stopped.set()
                raise

    quick = Detector(detector.shelf, Limits(seconds=0.2))
    asked.__class__ = type("Slow", (Asked,), {"__call__": lambda self, *given, **options: wait_for_ever(*given)})
    with pytest.raises(Refused, match=r"longer than 0\.2 seconds|still being loaded"):
        asyncio.run(quick(Request(picture, model="reads", text="cat")))
    assert stopped.wait(30)


def test_errors_of_the_server_stay_in_its_log(detector: Detector, picture: str) -> None:
    def broken(model: ServedModel) -> Any:
        raise FileNotFoundError("/secret/folder/weights.pth")

    detector.shelf._load = broken
    with pytest.raises(Refused, match="Something went wrong on the server") as refused:
        asyncio.run(detector(Request(picture, model="reads", text="cat")))
    assert "secret" not in str(refused.value)


def test_coco_file_of_boxes_masks_and_segments() -> None:
    mask = coco_mask.encode(torch.ones(40, 60, dtype=torch.uint8).numpy().copy(order="F"))
    mask = {"size": list(mask["size"]), "counts": mask["counts"].decode()}
    size = {"width": 60, "height": 40}
    boxes = {**size, "detections": [{"label": "dog", "score": 0.5, "box": [1.0, 2.0, 11.0, 22.0], "category": 1}]}
    coco = coco_of("a.jpg", boxes, ["cat", "dog"])
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (annotation,) = coco["annotations"]
    assert (annotation["category_id"], annotation["bbox"], annotation["area"]) == (2, [1.0, 2.0, 10.0, 20.0], 200.0)
    segments = {
        **size,
        "segments_info": [{"id": 1, "label": "sky", "category": 0, "isthing": False, "area": 2400, "mask": mask}],
    }
    (annotation,) = coco_of("a.jpg", segments, ["sky"])["annotations"]
    assert (annotation["bbox"], annotation["area"], annotation["segmentation"]) == ([0, 0, 60, 40], 2400, mask)
    assert json.dumps(coco)


def test_names_of_users_are_shown_as_they_are() -> None:
    label = "<img src=x onerror=alert(1)> ${value} {{x}}"
    record = {
        "width": 9,
        "height": 9,
        "detections": [{"label": label, "score": 0.5, "box": [0, 0, 1, 1], "category": 0}],
    }
    table = table_html(record)
    assert "<img" not in table and "${" not in table and "{{" not in table and escaped(label) in table
    assert safe_stem("../../etc/my photo (1).JPG") == "my_photo__1" and safe_stem("...") == "picture"
