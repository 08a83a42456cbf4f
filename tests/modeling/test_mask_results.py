"""Mask predictions to results, against the authors' on stored inputs (tests/reference/mask_dino, `infer`)."""

from pathlib import Path
from typing import Any

from grounding_dino.layers.box_ops import boxes_of_masks, inverse_sigmoid
from grounding_dino.modeling.fixed_classes import FixedClasses
from grounding_dino.modeling.mask_results import MaskResults, PicturedMasks
from grounding_dino.modeling.postprocess import postprocess_picture
from grounding_dino.modeling.transformer_decoder.query_selection import BOX_INITS
from grounding_dino.structures import Predictions, RleMasks

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from torch import Tensor

THINGS = frozenset(range(80))
SIZE = (40, 56)


@pytest.fixture(scope="module")
def stored(reference: Path) -> dict[str, Tensor]:
    arrays = np.load(reference / "mask_dino" / "units.npz")
    return {k.removeprefix("infer/"): torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith("infer/")}


class FullSize(PicturedMasks):
    """The stored masks have a cell a pixel."""

    def in_frame(self, masks: Tensor) -> Tensor:
        return masks


def pictured(stored: dict[str, Tensor]) -> PicturedMasks:
    return FullSize(stored["mask_pred"], SIZE, SIZE, SIZE)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("default", {}),
        ("overlap0.5", {"overlap_threshold": 0.5}),
        ("no_transform", {"temperature": 0.0}),
        ("obj0.8", {"object_mask_threshold": 0.8}),
    ],
)
def test_panoptic(stored: dict[str, Tensor], case: str, options: dict[str, Any]) -> None:
    results = MaskResults(panoptic=True, **options)
    segments, info = results.panoptic_segments(stored["mask_cls"].sigmoid(), pictured(stored), THINGS)
    assert torch.equal(segments, stored[f"panoptic_{case}_seg"].int())
    rows = [[s["id"], s["category_id"], int(s["isthing"])] for s in info]
    assert rows == stored[f"panoptic_{case}_segments"].tolist()


def test_panoptic_without_candidates(stored: dict[str, Tensor]) -> None:
    scores = torch.zeros_like(stored["mask_cls"])
    segments, info = MaskResults(panoptic=True).panoptic_segments(scores, pictured(stored), THINGS)
    assert segments.shape == SIZE and not segments.any() and info == []


@pytest.mark.parametrize(
    ("case", "options"), [("focal_T0.06", {}), ("focal_no_transform", {"temperature": 0.0}), ("ce", None)]
)
def test_semantic(stored: dict[str, Tensor], case: str, options: dict[str, Any] | None) -> None:
    logits = stored["mask_cls"]
    if options is None:
        classes = FixedClasses(tuple(range(132)), exclusive=True)
        found = MaskResults(semantic=True, exclusive_classes=True).semantic_map(
            classes.scores(logits), pictured(stored)
        )
    else:
        found = MaskResults(semantic=True, **options).semantic_map(logits.sigmoid(), pictured(stored))
    torch.testing.assert_close(found[:, ::4, ::4], stored[f"semantic_{case}_sub"], atol=1e-4, rtol=0)
    best = found.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-3
    assert torch.equal(found.argmax(0)[clear], stored[f"semantic_{case}_argmax"].long()[clear])


@pytest.mark.parametrize(
    ("case", "options"),
    [("", {}), ("_panoptic_on", {"panoptic": True}), ("_focus_on_box", {"mask_scores": False})],
)
@pytest.mark.parametrize("mask_format", ["bitmask", "rle"])
def test_instances(
    stored: dict[str, Tensor], case: str, options: dict[str, Any], mask_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grounding_dino.modeling.postprocess.PicturedMasks", FullSize)
    classes = FixedClasses(tuple(range(133)), things=THINGS)
    predictions = Predictions(stored["mask_cls"], stored["boxes_cxcywh"], stored["mask_pred"])
    results = MaskResults(mask_format=mask_format, **options)
    found = postprocess_picture([(classes, predictions)], {}, SIZE, 15, results)["instances"]
    golden = {k: stored[f"instance_top15{case}_{k}"] for k in ("scores", "classes", "boxes", "area")}
    order = golden["scores"].argsort(descending=True, stable=True)
    torch.testing.assert_close(found.scores, golden["scores"][order], atol=1e-5, rtol=0)
    assert torch.equal(found.pred_classes, golden["classes"].long()[order])
    expected = Boxes(golden["boxes"][order].clone())
    expected.clip(SIZE)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.tensor, atol=1e-4, rtol=0)
    masks = found.pred_masks if mask_format == "bitmask" else found.pred_masks_rle.decode()
    assert torch.equal(masks.sum(dim=(1, 2)), golden["area"].long()[order])
    assert found.has("pred_masks") == (mask_format == "bitmask")


@pytest.mark.parametrize("name", ["mask2box", "bitmask"])
def test_boxes_of_masks(stored: dict[str, Tensor], name: str) -> None:
    bits = np.unpackbits(stored["boxinit_masks_packed"].numpy(), axis=-1)[:, : 40 * 56]
    make = BOX_INITS[name]
    assert make is not None
    boxes = make(torch.from_numpy(bits.astype(bool)).view(6, 40, 56))
    expected = stored[f"boxinit_{name}_unsigmoid"]
    torch.testing.assert_close(inverse_sigmoid(boxes, 1e-5), expected, atol=1e-4, rtol=1e-5)


def test_a_box_of_a_mask_ends_behind_its_last_pixel() -> None:
    masks = torch.zeros(2, 4, 8, dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    boxes = boxes_of_masks(masks)
    torch.testing.assert_close(boxes, torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]]))


def test_masks_in_frame_and_picture() -> None:
    """A picture of 6 x 5 pixels in the corner of a frame of 8 x 8, asked for in 12 x 10."""
    logits = torch.full((1, 2, 2), -4.0)
    logits[0, 0, 0] = 4.0
    masks = PicturedMasks(logits, (8, 8), (6, 5), (12, 10))
    ((part, found),) = masks.chunks(torch.tensor([0]))
    assert found.shape == (1, 12, 10) and part.tolist() == [0]
    inside = (found[0] > 0).nonzero()
    assert inside.amin(0).tolist() == [0, 0] and inside.amax(0).tolist() == [7, 7]  # the first cell's 4 pixels, doubled
    assert list(masks.chunks(torch.zeros(0, dtype=torch.int64))) == []


def test_rle_is_indexed_as_instances_are() -> None:
    masks = torch.rand(4, 5, 6) > 0.5
    rles = RleMasks.encode(masks)
    assert torch.equal(rles.decode(), masks)
    assert torch.equal(rles[torch.tensor([2, 0])].decode(), masks[[2, 0]])
    assert torch.equal(rles[masks[:, 0, 0]].decode(), masks[masks[:, 0, 0]]) or not masks[:, 0, 0].any()
    assert len(rles[1:3]) == 2 and rles[3]["size"] == [5, 6]
    assert RleMasks.encode(masks[:0]) == []


@pytest.mark.parametrize(
    "option, message",
    [
        ({"mask_format": "polygon"}, "unknown TEST.MASK_FORMAT 'polygon'"),
        ({"instance": False}, "set TEST.INSTANCE_ON"),
        ({"object_mask_threshold": 1.5}, "TEST.OBJECT_MASK_THRESHOLD is 1.5"),
        ({"overlap_threshold": float("nan")}, "TEST.OVERLAP_THRESHOLD is nan"),
        ({"temperature": -0.1}, "TEST.CLASS_TEMPERATURE is -0.1"),
    ],
)
def test_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskResults(**option)
