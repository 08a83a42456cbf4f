import json

from grounding_dino.evaluation.grefexp import GeneralizedRefExpEvaluator, count_pairs

import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances

LEFT, RIGHT, FAR = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [60.0, 60, 70, 70]


def _annotation(index, box):
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": index}


# "both" and "left" name two things and one; "none" and "nothing" name nothing
RECORDS = [
    {
        "expression_ids": ["both", "none", "left"],
        "annotations": [_annotation(0, LEFT), _annotation(0, RIGHT), _annotation(2, LEFT)],
    },
    {"expression_ids": ["nothing"], "annotations": []},
]


def _output(*detections):
    instances = Instances((80, 80))
    instances.pred_boxes = Boxes(torch.tensor([box for box, _, _ in detections], dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor([score for _, score, _ in detections])
    instances.pred_classes = torch.tensor([index for _, _, index in detections], dtype=torch.int64)
    return {"instances": instances}


def _results(name, outputs, records=RECORDS, **options):
    evaluator = GeneralizedRefExpEvaluator(name, **options)
    evaluator.reset()
    evaluator.process(records, outputs)
    return evaluator.evaluate()["grefexp"]


TRUTH = [_output((LEFT, 0.9, 0), (RIGHT, 0.8, 0), (LEFT, 0.75, 2)), _output()]


def test_the_truth_is_right(register_records, tmp_path):
    assert _results(register_records(RECORDS), TRUTH, output_dir=str(tmp_path)) == {
        "P@(F1=1)": 100,
        "N_acc": 100,
        "T_acc": 100,
    }
    counts = json.loads((tmp_path / "grefexp.json").read_text())
    assert counts["both"] == {"found": 2, "true": 2, "paired": 2} and counts["nothing"]["found"] == 0


def test_boxes_of_other_expressions_are_not(register_records):
    shuffled = [_output((LEFT, 0.9, 1), (RIGHT, 0.8, 2), (LEFT, 0.75, 0)), _output((LEFT, 0.9, 0))]
    assert _results(register_records(RECORDS), shuffled) == {"P@(F1=1)": 0, "N_acc": 0, "T_acc": 100}


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        # one of "both" is missed; "none" gets a box; "left" has one too many below the threshold, which does not count
        (
            [_output((LEFT, 0.9, 0), (FAR, 0.7, 1), (LEFT, 0.75, 2), (FAR, 0.69, 2)), _output()],
            {"P@(F1=1)": 50, "N_acc": 50, "T_acc": 100},
        ),
        # "both" is found by two boxes of the same thing, "left" has one too many
        (
            [_output((LEFT, 0.9, 0), ([0.0, 0, 10, 9], 0.8, 0), (LEFT, 0.75, 2), (FAR, 0.9, 2)), _output()],
            {"P@(F1=1)": 50, "N_acc": 100, "T_acc": 100},
        ),
        ([_output(), _output()], {"P@(F1=1)": 50, "N_acc": 100, "T_acc": 0}),
        # an IoU of exactly one half is enough, one below it is not
        (
            [_output((LEFT, 0.9, 0), (RIGHT, 0.9, 0), ([0.0, 0, 10, 5], 0.9, 2)), _output()],
            {"P@(F1=1)": 100, "N_acc": 100, "T_acc": 100},
        ),
        (
            [_output((LEFT, 0.9, 0), (RIGHT, 0.9, 0), ([0.0, 0, 10, 4.9], 0.9, 2)), _output()],
            {"P@(F1=1)": 75, "N_acc": 100, "T_acc": 100},
        ),
    ],
)
def test_hand_computed_cases(register_records, outputs, expected):
    assert _results(register_records(RECORDS), outputs) == expected


def test_thresholds_count(register_records):
    name = register_records(RECORDS)
    assert _results(name, TRUTH, score_threshold=0.78)["P@(F1=1)"] == 75
    almost = [_output((LEFT, 0.9, 0), (RIGHT, 0.8, 0), ([0.0, 0, 10, 8], 0.75, 2)), _output()]
    assert _results(name, almost)["P@(F1=1)"] == 100
    assert _results(name, almost, iou_threshold=0.9)["P@(F1=1)"] == 75
    protocol = GeneralizedRefExpEvaluator(name, score_threshold=0.6, prompt="alone").protocol()
    assert protocol["expressions"] == "4, 2 of them name nothing" and "0.6" in protocol["detections"]
    assert protocol["prompt"] == "alone" and protocol["score"].startswith("the mean")


def test_expressions_without_an_output_are_wrong(register_records, caplog):
    results = _results(register_records(RECORDS), TRUTH[:1], RECORDS[:1])
    assert results == {"P@(F1=1)": 75, "N_acc": 50, "T_acc": 100}
    assert "1 of 4 expressions have no output" in caplog.text


def test_a_share_of_nothing_is_left_out(register_records):
    assert _results(register_records(RECORDS[1:]), [_output()], RECORDS[1:]) == {"P@(F1=1)": 100, "N_acc": 100}


def test_records_that_cannot_be_counted_are_refused(register_records):
    with pytest.raises(ValueError, match="'nothing' .* another's too"):
        GeneralizedRefExpEvaluator(register_records([RECORDS[1]] * 2))
    empty = GeneralizedRefExpEvaluator(register_records([]))
    with pytest.raises(ValueError, match="no referring expression"):
        empty.evaluate()


def test_pairs_are_one_to_one_and_the_best_first():
    overlaps = torch.tensor([[0.9, 0.8], [0.7, 0.1]])
    assert count_pairs(overlaps, 0.5) == 1  # (0, 0) first, which leaves only (1, 1)
    assert count_pairs(overlaps, 0.1) == 2
    assert count_pairs(overlaps, 0.95) == 0
    assert count_pairs(torch.zeros(0, 3), 0.5) == count_pairs(torch.zeros(3, 0), 0.5) == 0
    assert overlaps[0, 0] == torch.tensor(0.9)  # the caller's own is left as it is
