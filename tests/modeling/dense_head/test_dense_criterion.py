"""The losses of GLIP by hand, against plain sums, without objects, in half precision and over processes."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import grounding_dino  # noqa: F401
from grounding_dino.layers.box_ops import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from grounding_dino.modeling.dense_head.anchors import decode_boxes, place_anchors
from grounding_dino.modeling.dense_head.atss import BACKGROUND, assign_places, centerness_of
from grounding_dino.modeling.dense_head.dense_criterion import DenseCriterion
from grounding_dino.modeling.dense_head.token_head import TokenHead
from grounding_dino.structures import DensePredictions, Targets, TextFeatures

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou

STRIDES, SIZES = [16, 32, 64], ((6, 8), (3, 4), (2, 2))
NUM_PLACES, TOKENS = 48 + 12 + 4, 5
FRAME = (90, 120)
NAMES = {"loss_class", "loss_giou", "loss_centerness"}


def anchors() -> list[Tensor]:
    return place_anchors(SIZES, STRIDES, 2.0, torch.zeros(1))


def target(boxes: list[list[float]], tokens: list[list[int]], num_tokens: int = TOKENS) -> Targets:
    """Objects (XYXY pixels) of a picture of FRAME and the tokens of each."""
    height, width = FRAME
    corners = torch.tensor(boxes).reshape(-1, 4) / torch.tensor([width, height, width, height])
    positive = torch.zeros(len(boxes), num_tokens)
    for row, columns in zip(positive, tokens):
        row[columns] = 1
    return Targets(torch.arange(len(boxes)), box_xyxy_to_cxcywh(corners), positive_map=positive)


def two_pictures() -> list[Targets]:
    return [
        target([[10, 12, 60, 50], [40, 20, 118, 88], [3, 3, 21, 19]], [[1], [2, 3], [1]]),
        target([[30, 5, 100, 80]], [[2]]),
    ]


def predictions(num_pictures: int = 2, num_tokens: int = TOKENS, seed: int = 0) -> DensePredictions:
    generator = torch.Generator().manual_seed(seed)

    def parts(*shape: int) -> list[Tensor]:
        counts = [h * w for h, w in SIZES]
        return [torch.randn(num_pictures, n, *shape, generator=generator).requires_grad_() for n in counts]

    return DensePredictions(parts(num_tokens), parts(4), parts(), SIZES)


def no_padding(num_pictures: int = 2, num_tokens: int = TOKENS) -> Tensor:
    return torch.zeros(num_pictures, num_tokens, dtype=torch.bool)


def losses_of(
    found: DensePredictions, targets: list[Targets], padding: Tensor | None = None, **settings: float
) -> dict[str, Tensor]:
    padding = no_padding(len(targets)) if padding is None else padding
    losses = DenseCriterion(**settings)(found, anchors(), targets, [FRAME] * len(targets), padding)  # type: ignore
    assert set(losses) == NAMES
    return losses


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def test_by_hand() -> None:
    """Four anchors tile a picture of 32 pixels, and the object is the first; the box predicted lies 8 pixels beside.

    Overlaps of the candidates are 1, 0, 0, 0: their mean is 1/4, their deviation 1/2.
    """
    places = place_anchors([(2, 2)], [16], 1.0, torch.zeros(1))
    deltas = torch.zeros(1, 4, 4)
    deltas[0, 0, 0] = 5.0  # half a side to the right
    deltas[0, 1:] = 3.0  # of places that learn nothing
    found = DensePredictions([torch.zeros(1, 4, 3)], [deltas], [torch.zeros(1, 4)], ((2, 2),))
    padding = torch.tensor([[False, False, True]])
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5]])
    targets = [Targets(torch.tensor([0]), boxes, positive_map=torch.tensor([[0.0, 1, 0]]))]
    losses = DenseCriterion()(found, places, targets, [(32, 32)], padding)
    # 8 decisions at 1/2: one yes, seven noes
    assert losses["loss_class"].item() == pytest.approx((0.25 + 7 * 0.75) * 0.5**2 * math.log(2))
    assert losses["loss_giou"].item() == pytest.approx(2 * (1 - 1 / 3))
    assert losses["loss_centerness"].item() == pytest.approx(math.log(2))


def test_equals_plain_sums() -> None:
    found, targets = predictions(), two_pictures()
    places = torch.cat(anchors())
    logits, deltas, centerness = (torch.cat(p, 1) for p in (found.token_logits, found.box_deltas, found.centerness))
    focal, boxes, central, weights, count = 0.0, 0.0, 0.0, 0.0, 0
    for picture, each in enumerate(targets):
        height, width = FRAME
        objects = box_cxcywh_to_xyxy(each.boxes) * torch.tensor([width, height, width, height])
        assigned = assign_places(anchors(), objects, 5)
        for place in range(NUM_PLACES):
            number = int(assigned[place])
            assert each.positive_map is not None
            row = each.positive_map[number] if number != BACKGROUND else torch.zeros(TOKENS)
            for logit, truth in zip(logits[picture, place], row):
                p = logit.sigmoid() if truth else 1 - logit.sigmoid()
                focal -= (0.4 if truth else 0.6) * (1 - p) ** 1.5 * p.log()
            if number == BACKGROUND:
                continue
            weight = centerness_of(places[place : place + 1, :2], objects[number : number + 1])[0]
            box = decode_boxes(deltas[picture, place], places[place])
            boxes += weight * (1 - generalized_box_iou(box[None], objects[number : number + 1])[0, 0])
            p = centerness[picture, place].sigmoid()
            central -= weight * p.log() + (1 - weight) * (1 - p).log()
            weights, count = weights + weight, count + 1
    settings = {"class_weight": 2.0, "giou_weight": 3.0, "centerness_weight": 0.5}
    losses = losses_of(found, targets, **settings, focal_alpha=0.4, focal_gamma=1.5, num_candidates=5)
    assert count > 6
    torch.testing.assert_close(losses["loss_class"], 2 * focal / count)
    torch.testing.assert_close(losses["loss_giou"], 3 * boxes / weights)
    torch.testing.assert_close(losses["loss_centerness"], 0.5 * central / count)


def test_pictures_without_objects_leave_every_parameter_of_the_head_a_finite_gradient() -> None:
    """Or the processes of a distributed training would wait for each other forever."""
    torch.manual_seed(0)
    head = TokenHead(6, 4, len(SIZES))
    padding = torch.tensor([[False] * TOKENS, [False] * 3 + [True] * 2])
    text = TextFeatures(torch.randn(2, TOKENS, 4), padding, ~padding[:, None], torch.zeros(2, TOKENS))
    found = head([torch.randn(2, 6, h, w) for h, w in SIZES], text.embeddings, text)
    losses = losses_of(found, [target([], []), target([], [])], padding)
    assert losses["loss_giou"] == losses["loss_centerness"] == 0
    assert 0 < losses["loss_class"] < 1
    total(losses).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_one_picture_without_objects_adds_background_alone() -> None:
    found, (first, _) = predictions(), two_pictures()
    both = losses_of(found, [first, target([], [])])
    alone = losses_of(found_of(found, 0), [first])
    assert torch.equal(both["loss_giou"], alone["loss_giou"])
    assert torch.equal(both["loss_centerness"], alone["loss_centerness"])
    assert both["loss_class"] > alone["loss_class"]


def found_of(found: DensePredictions, *pictures: int) -> DensePredictions:
    """Some of the batch's pictures."""
    logits, deltas, centerness = (
        [level[list(pictures)] for level in part] for part in (found.token_logits, found.box_deltas, found.centerness)
    )
    return DensePredictions(logits, deltas, centerness, SIZES)


@pytest.mark.parametrize("value", [-math.inf, 1e4, math.nan])
def test_padded_tokens_have_no_effect(value: float) -> None:
    """Neither on losses nor on gradients, whatever the head says of them."""
    found = predictions()
    plain = losses_of(found, two_pictures())
    columns = [torch.cat((level, torch.full((2, level.shape[1], 2), value)), -1) for level in found.token_logits]
    wider = DensePredictions(columns, found.box_deltas, found.centerness, SIZES)
    padding = torch.tensor([[False] * TOKENS + [True] * 2] * 2)
    targets = [
        Targets(t.labels, t.boxes, positive_map=F.pad(t.positive_map, (0, 2)))
        for t in two_pictures()
        if t.positive_map is not None
    ]
    padded = losses_of(wider, targets, padding)
    for name in NAMES:
        torch.testing.assert_close(padded[name], plain[name])
    leaves = found.token_logits
    expected, ours = (torch.autograd.grad(total(losses), leaves) for losses in (plain, padded))
    for one, two in zip(ours, expected):
        torch.testing.assert_close(one, two)


def test_an_object_whose_words_were_cut_off_learns_its_box_alone() -> None:
    found = predictions(1)
    boxes = [[10.0, 12, 60, 50]]
    named, cut = (losses_of(found, [target(boxes, [tokens])]) for tokens in ([1], []))
    assert torch.equal(named["loss_giou"], cut["loss_giou"])
    assert not torch.equal(named["loss_class"], cut["loss_class"])


def test_only_places_that_learn_an_object_have_a_gradient_in_boxes_and_centerness() -> None:
    found, targets = predictions(1), two_pictures()[:1]
    total(losses_of(found, targets)).backward()
    objects = box_cxcywh_to_xyxy(targets[0].boxes) * torch.tensor([120, 90, 120, 90])
    learning = assign_places(anchors(), objects) != BACKGROUND
    for part in (found.box_deltas, found.centerness):
        gradient = torch.cat([level.grad.reshape(1, level.shape[1], -1) for level in part if level.grad is not None], 1)
        assert torch.equal(gradient[0].ne(0).any(-1), learning)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_are_compared_in_float32(dtype: torch.dtype) -> None:
    found = predictions()

    def cast(parts: list[Tensor], *dtypes: torch.dtype) -> list[Tensor]:
        for each in dtypes:
            parts = [part.to(each) for part in parts]
        return parts

    with torch.autocast("cpu", dtype=dtype):
        parts = (found.token_logits, found.box_deltas, found.centerness)
        losses = losses_of(DensePredictions(*(cast(part, dtype) for part in parts), SIZES), two_pictures())
    exact = losses_of(DensePredictions(*(cast(part, dtype, torch.float32) for part in parts), SIZES), two_pictures())
    for name in NAMES:
        assert losses[name].dtype == torch.float32
        assert torch.equal(losses[name], exact[name])


@pytest.mark.parametrize("part", ["token_logits", "box_deltas", "centerness"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_predictions_that_are_no_numbers_are_refused(part: str, value: float) -> None:
    """Also at a place that learns no box, where they would not show in a loss."""
    found = predictions()
    with torch.no_grad():
        getattr(found, part)[0][1, 0] = value
    with pytest.raises(FloatingPointError, match=r"NaN or infinite; lower SOLVER.BASE_LR.*MODEL.WEIGHTS"):
        losses_of(found, two_pictures())


def test_a_weight_of_zero_switches_a_loss_off() -> None:
    losses = losses_of(predictions(), two_pictures(), class_weight=0.0, giou_weight=0.0, centerness_weight=0.0)
    assert all(loss == 0 for loss in losses.values())


# ---------------------------------------------------------------------------------------------------- processes


def own_losses(port: int, folder: str, rank: int) -> None:
    """The losses and gradients of one of two processes, which has one of the two pictures."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    full = predictions()
    losses = losses_of(found_of(full, rank), two_pictures()[rank : rank + 1])
    total(losses).backward()
    gradients = [level.grad for level in (*full.token_logits, *full.box_deltas, *full.centerness)]
    torch.save(({name: loss.detach() for name, loss in losses.items()}, gradients), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """The mean of their losses, and so of their gradients, is that of all pictures in one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # started as scripts: what pytest imported by path cannot be imported by name in another process
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, __file__, str(port), str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank)], env=environment) for rank in (0, 1)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    found = predictions()
    expected = losses_of(found, two_pictures())
    total(expected).backward()
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in NAMES:
        torch.testing.assert_close((parts[0][0][name] + parts[1][0][name]) / 2, expected[name])
    for level, one, two in zip(
        (*found.token_logits, *found.box_deltas, *found.centerness), parts[0][1], parts[1][1], strict=True
    ):
        torch.testing.assert_close((one + two) / 2, level.grad)


if __name__ == "__main__":
    own_losses(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
