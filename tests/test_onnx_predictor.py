"""The predictor of exported models gives what `GroundingPredictor` gives.

Most tests run the exporter's graph in torch in the place of a runtime, which needs no file to be written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grounding_dino.export.describe import describe_model
from grounding_dino.export.graph import graph_of
from grounding_dino.exported import runtimes
from grounding_dino.exported.detections import Detections
from grounding_dino.model_zoo import load_cfg
from grounding_dino.onnx_predictor import OnnxPredictor
from grounding_dino.predictor import GroundingPredictor, load_predictor
from grounding_dino.thresholds import CategoryThresholds

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

PICTURES = sorted((Path(__file__).resolve().parents[1] / "demo" / "pictures").glob("*.jpg"))
NAMES = ["red circle", "blue star", "green ring", "purple crescent", "orange star", "black square"]
RANDOM = np.random.default_rng(0)
PICTURES_OF_SIZES = [RANDOM.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 60), (60, 40), (300, 90))]
INSTANCES = ("TEST.PANOPTIC_ON", False, "TEST.SEMANTIC_ON", False)


class GraphInTorch:
    """What the exporter writes, as a runtime."""

    def __init__(self, name: str, predictor: GroundingPredictor, opts: tuple[object, ...]) -> None:
        self.graph = graph_of(predictor.model)
        self.description = describe_model(load_cfg(name, opts), predictor.model, name)
        self.input_names = frozenset(self.graph.input_names)
        self.batches: list[tuple[int, ...]] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.batches.append(inputs["images"].shape)
        with torch.no_grad():
            found = self.graph(*(torch.from_numpy(inputs[name]) for name in self.graph.input_names))
        return {name: tensor.numpy() for name, tensor in zip(self.graph.output_names, found)}


Pair = tuple[OnnxPredictor, GroundingPredictor]


def pair_of(name: str, opts: tuple[object, ...] = ()) -> Pair:
    torchs = load_predictor(name, device="cpu", opts=opts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(runtimes.RUNTIMES, "graph", lambda path, **_: GraphInTorch(name, torchs, opts))
        return OnnxPredictor(PICTURES[0], "graph"), torchs


@pytest.fixture(scope="module")
def both() -> Pair:
    return pair_of("shapes_tiny")


def check_same(ours: Detections, expected: Instances) -> None:
    """The same labels, scores within 1e-3, boxes within 0.1 pixels; masks but for single pixels."""
    assert isinstance(ours, Detections) and ours.image_size == expected.image_size
    assert set(ours.get_fields()) == set(expected.get_fields())
    for name in ("labels", "phrases"):
        assert getattr(ours, name) == (expected.get(name) if expected.has(name) else None)
    np.testing.assert_allclose(ours.scores, expected.scores, atol=1e-3)
    np.testing.assert_allclose(ours.pred_boxes, expected.pred_boxes.tensor, atol=0.1)
    if ours.pred_classes is not None:
        np.testing.assert_array_equal(ours.pred_classes, expected.pred_classes)
    if ours.pred_masks is not None:
        assert (ours.pred_masks != expected.pred_masks.numpy()).mean() < 1e-3


CALLS: list[dict[str, Any]] = [
    {"categories": NAMES},
    {"categories": NAMES, "box_threshold": 0.1, "best_label_only": False},
    {"categories": NAMES, "box_threshold": CategoryThresholds(0.2, {"Blue  Star": 0.6})},
    {"categories": NAMES[:2], "not_wanted": NAMES[2:], "box_threshold": 0.1},
    {"caption": "a red circle and a blue star", "box_threshold": 0.2},
    {"caption": "stars", "box_threshold": 0.1, "text_threshold": 0.9},
]


@pytest.mark.parametrize("arguments", CALLS, ids=lambda call: "-".join(call))
@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_the_demos_pictures(both: Pair, path: Path, arguments: dict[str, Any]) -> None:
    check_same(both[0](path, **arguments), both[1](path, **arguments))


def test_some_of_them_are_found(both: Pair) -> None:
    assert sum(len(found) for found in both[0](PICTURES, NAMES)) >= 4


def test_lists_of_pictures_with_texts_of_their_own(both: Pair) -> None:
    pictures = [PICTURES_OF_SIZES[i % 3] for i in range(5)]
    lists = [NAMES[:3], NAMES[1:], NAMES, ["red circle"], NAMES[:3]]
    for arguments in ({"categories": lists}, {"caption": ["a star", "rings.", "a red circle", "a star", "squares"]}):
        together = both[0](pictures, **arguments, box_threshold=0.1)
        for ours, expected in zip(together, both[1](pictures, **arguments, box_threshold=0.1), strict=True):
            check_same(ours, expected)
    runtime: Any = both[0]._runtime
    assert [shape[0] for shape in runtime.batches[-3:]] == [2, 2, 1]  # pictures of one size stand together


def test_names_of_several_prompts(both: Pair) -> None:
    colours, kinds = ("red", "blue", "green", "orange", "purple", "black", "pink"), ("circle", "star", "ring", "square")
    names = [f"{size} {colour} {kind}" for size in ("small", "large", "tiny") for colour in colours for kind in kinds]
    runtime: Any = both[0]._runtime
    before = len(runtime.batches)
    for path in PICTURES[:2]:
        arguments = {"categories": names, "box_threshold": 0.05, "not_wanted": ["yellow ring"]}
        check_same(both[0](path, **arguments), both[1](path, **arguments))
    assert runtime.batches[before][0] > 1


def test_a_model_of_fixed_classes_with_masks() -> None:
    ours, torchs = pair_of("shapes_tiny_panoptic", INSTANCES)
    assert ours.classes == torchs.classes
    for path in PICTURES:
        check_same(ours(path, box_threshold=0.3), torchs(path, box_threshold=0.3))
    check_same(ours(PICTURES[0], not_wanted=ours.classes[:2]), torchs(PICTURES[0], not_wanted=ours.classes[:2]))
    with pytest.raises(ValueError, match="reads no text"):
        ours(PICTURES[0], ["cat"])


def test_instances_of_a_panoptic_model_are_its_things() -> None:
    ours, torchs = pair_of("shapes_tiny_panoptic")
    for path in PICTURES[:2]:
        check_same(ours(path, box_threshold=0.1), torchs(path, box_threshold=0.1)["instances"])


@pytest.mark.parametrize("arguments", CALLS, ids=lambda call: "-".join(call))
def test_a_dense_detector(glip: Pair, arguments: dict[str, Any]) -> None:
    pictures = [*PICTURES[:2], *PICTURES_OF_SIZES]
    for ours, expected in zip(glip[0](pictures, **arguments), glip[1](pictures, **arguments), strict=True):
        check_same(ours, expected)


@pytest.fixture(scope="module")
def glip() -> Pair:
    return pair_of("glip_shapes_tiny")


def test_no_pictures_and_stacks(both: Pair) -> None:
    assert both[0]([], NAMES) == []
    assert len(both[0](np.zeros((2, 40, 60, 3), np.uint8), NAMES)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither is given"),
        ({"categories": []}, "empty"),
        ({"caption": "?!."}, "no word"),
        ({"categories": NAMES, "box_threshold": 35}, "box_threshold must lie in"),
        ({"caption": "a star", "box_threshold": CategoryThresholds()}, "thresholds by category go with categories"),
        ({"categories": NAMES, "image_format": "HSV"}, "image_format"),
    ],
)
def test_bad_arguments_get_the_sentences_of_the_other_predictor(
    both: Pair, arguments: dict[str, Any], message: str
) -> None:
    for predictor in both:
        with pytest.raises((ValueError, TypeError), match=message):
            predictor(np.zeros((40, 60, 3), np.uint8), **arguments)


def test_a_prompt_is_checked_before_there_are_pictures(both: Pair) -> None:
    both[0].check_prompt(categories=NAMES)
    with pytest.raises(ValueError, match="no word"):
        both[0].check_prompt(caption="...")


def test_nan_is_told(both: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    run: Callable[..., Any] = both[0]._runtime.run
    monkeypatch.setattr(both[0]._runtime, "run", lambda inputs: {k: v * np.nan for k, v in run(inputs).items()})
    with pytest.raises(ValueError, match="answers with NaN or infinite values: look at the weights"):
        both[0](PICTURES[0], NAMES)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no exported model .*nowhere.onnx"):
        OnnxPredictor(tmp_path / "nowhere.onnx")
    with pytest.raises(ValueError, match="unknown runtime 'caffe'; choose from"):
        OnnxPredictor(PICTURES[0], "caffe")
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(ValueError, match="cannot load .*jpg"):
            OnnxPredictor(PICTURES[0], runtime)
    with pytest.raises(ValueError, match="no provider 'MadeUp'"):
        OnnxPredictor(PICTURES[0], providers=["MadeUp"])
