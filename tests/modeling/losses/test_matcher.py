from collections.abc import Callable

from grounding_dino.modeling.losses import matcher as matcher_module
from grounding_dino.modeling.losses.matcher import HungarianMatcher
from grounding_dino.structures import Targets

import pytest
import torch
from torch import Tensor


def make_matcher(**weights: float) -> HungarianMatcher:
    return HungarianMatcher(**{"class_weight": 2.0, "l1_weight": 5.0, "giou_weight": 2.0, **weights})


def random_inputs(counts: list[int], queries: int = 12, classes: int = 5) -> tuple[Tensor, Tensor, list[Targets]]:
    torch.manual_seed(0)
    targets = [Targets(torch.randint(classes, (n,)), torch.rand(n, 4) * 0.4 + 0.2) for n in counts]
    return torch.randn(3, len(counts), queries, classes), torch.rand(3, len(counts), queries, 4), targets


@pytest.mark.parametrize("name", ["case1", "case2", "case3"])
def test_assignment_equals_reference(load_loss_case: Callable, name: str) -> None:
    case = load_loss_case(name)
    output = case.output()
    stages = [*output.layers, output.encoder]
    logits, boxes = torch.stack([p.pred_logits for p in stages]), torch.stack([p.pred_boxes for p in stages])
    matches = make_matcher()(logits, boxes, case.targets, ~case.text_padding_mask)
    first = 0
    for index, target in enumerate(case.targets):
        assigned = torch.full((7, 20), -1)
        mine = matches.picture == index
        assigned.scatter_(1, matches.query[:, mine], matches.target[:, mine] - first)
        assert torch.equal(assigned, case.arrays[f"assigned_gt{index}"])
        first += len(target)


@pytest.mark.parametrize("name", ["case1", "case2"])
@pytest.mark.parametrize("term", ["cls", "l1", "giou"])
def test_each_cost_equals_reference(load_loss_case: Callable, name: str, term: str) -> None:
    case = load_loss_case(name)
    output = case.output()
    stages = [*output.layers, output.encoder]
    logits, boxes = torch.stack([p.pred_logits for p in stages]), torch.stack([p.pred_boxes for p in stages])
    others = {"cls": "class_weight", "l1": "l1_weight", "giou": "giou_weight"}
    del others[term]
    matcher = make_matcher(**dict.fromkeys(others.values(), 0.0))
    costs = matcher.costs(logits, boxes, case.targets, ~case.text_padding_mask)
    for index, target in enumerate(case.targets):
        if len(target):
            expected = case.arrays[f"cost_{term}{index}"]
            torch.testing.assert_close(costs[:, index, :, : len(target)], expected, atol=1e-4, rtol=1e-5)


def test_class_cost_of_labels_is_the_difference_at_the_label() -> None:
    logits, boxes, targets = random_inputs([3, 2])
    costs = make_matcher(class_weight=1.0, l1_weight=0.0, giou_weight=0.0).costs(logits, boxes, targets)
    p = logits[1, 0, 4, targets[0].labels[2]].sigmoid()
    expected = -0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log()
    torch.testing.assert_close(costs[1, 0, 4, 2], expected)


def test_chunks_give_the_same_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, boxes, targets = random_inputs([9, 4])
    whole = make_matcher().costs(logits, boxes, targets)
    monkeypatch.setattr(matcher_module, "_MAX_CHUNK", 2 * boxes[..., 0].numel())
    torch.testing.assert_close(make_matcher().costs(logits, boxes, targets), whole)


def test_more_targets_than_queries_matches_every_query() -> None:
    logits, boxes, targets = random_inputs([30, 0, 2], queries=8)
    matches = make_matcher()(logits, boxes, targets)
    assert matches.picture.tolist() == [0] * 8 + [2] * 2
    assert matches.query[0, :8].sort().values.tolist() == list(range(8))
    assert set(matches.target[0, 8:].tolist()) == {30, 31}


def test_no_targets_at_all() -> None:
    logits, boxes, targets = random_inputs([0, 0])
    matches = make_matcher()(logits, boxes, targets)
    assert matches.query.shape == matches.target.shape == (3, 0)


def test_not_finite_names_the_picture() -> None:
    logits, boxes, targets = random_inputs([2, 3])
    logits[2, 1, 0, 0] = float("nan")
    logits[2, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="picture 1 of the batch .* stage 2"):
        make_matcher()(logits, boxes, targets)


def test_autocast_does_not_change_the_costs() -> None:
    logits, boxes, targets = random_inputs([3, 2])
    targets = [Targets(t.labels, t.boxes, positive_map=torch.eye(5)[t.labels]) for t in targets]
    expected = make_matcher().costs(logits, boxes, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(make_matcher().costs(logits, boxes, targets), expected)
