import json

from grounding_dino.evaluation.phrase_grounding import PhraseGroundingEvaluator

import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances

LEFT, RIGHT, FAR = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [60.0, 60, 70, 70]
AROUND = [0.0, 0, 30, 10]  # both of them


def _annotation(index, box):
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": index}


RECORDS = [
    {
        "image_id": 1,
        "caption": "two rings on a table",
        "phrases": [[(0, 9)], [(13, 20)], [(10, 12)]],  # the last has no box
        "annotations": [_annotation(0, LEFT), _annotation(0, RIGHT), _annotation(1, AROUND)],
        "phrase_types": [["things"], ["things", "scene"], []],
    },
    {"image_id": 2, "caption": "a star", "phrases": [(0, 6)], "annotations": [_annotation(0, FAR)]},
    {"image_id": 3, "caption": "it rains", "phrases": [], "annotations": []},
]


def _output(*detections):
    instances = Instances((80, 80))
    instances.pred_boxes = Boxes(torch.tensor([box for box, _, _ in detections], dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor([score for _, score, _ in detections])
    instances.pred_classes = torch.tensor([index for _, _, index in detections], dtype=torch.int64)
    return {"instances": instances}


CAPTION_ALONE = {"instances": Instances((80, 80))}  # as the model gives it: without classes
TRUTH = [_output((LEFT, 0.9, 0), (AROUND, 0.7, 0), (AROUND, 0.8, 1)), _output((FAR, 0.3, 0)), CAPTION_ALONE]


def _results(name, outputs, records=RECORDS, **options):
    evaluator = PhraseGroundingEvaluator(name, **options)
    evaluator.reset()
    evaluator.process(records, outputs)
    return evaluator.evaluate()["flickr30k"]


def _overall(results):
    return {key: value for key, value in results.items() if "-" not in key}


def test_the_truth_is_found_in_full(register_records, tmp_path):
    results = _results(register_records(RECORDS), TRUTH, output_dir=str(tmp_path))
    # "two rings" has the box around both at the second place only
    assert _overall(results) == {
        **{"R@1": 100, "R@5": 100, "R@10": 100},
        **{"merged_R@1": pytest.approx(200 / 3), "merged_R@5": 100, "merged_R@10": 100},
    }
    assert results["R@1-things"] == results["R@1-scene"] == 100
    assert (results["merged_R@1-things"], results["merged_R@1-scene"]) == (50, 100)
    ranks = json.loads((tmp_path / "phrase_ranks.json").read_text())
    assert ranks == {
        "1": [{"phrase": "two rings", "any": 0, "merged": 1}, {"phrase": "a table", "any": 0, "merged": 0}],
        "2": [{"phrase": "a star", "any": 0, "merged": 0}],
    }


def test_boxes_of_other_phrases_and_captions_do_not_count(register_records):
    shuffled = [_output((FAR, 0.9, 0), (LEFT, 0.8, 1)), _output((AROUND, 0.3, 0)), CAPTION_ALONE]
    assert set(_results(register_records(RECORDS), shuffled).values()) == {0}


def test_nothing_found_is_no_recall(register_records):
    assert set(_results(register_records(RECORDS), [_output(), _output(), CAPTION_ALONE]).values()) == {0}


def test_the_score_orders_the_boxes_of_a_phrase(register_records):
    """ "two rings": right at the third place; "a table": at the sixth; "a star": never."""
    wrong = [(FAR, 0.9 - 0.01 * i) for i in range(10)]
    found = [
        *((box, score, 0) for box, score in wrong[:2]),
        (RIGHT, 0.5, 0),
        (AROUND, 0.2, 1),  # listed before what is scored higher
        *((box, score, 1) for box, score in wrong[:5]),
    ]
    outputs = [_output(*found), _output((LEFT, 0.9, 0)), CAPTION_ALONE]
    results = _overall(_results(register_records(RECORDS), outputs, ranks=(10, 1, 5)))
    assert results["R@1"] == 0
    assert results["R@5"] == pytest.approx(100 / 3) and results["R@10"] == pytest.approx(200 / 3)
    assert results["merged_R@5"] == 0 and results["merged_R@10"] == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    ("box", "hit_any", "hit_merged"),
    [
        ([0.0, 0, 10, 5], 1, 0),  # an IoU of one half with one of the two
        ([0.0, 0, 10, 4.9], 0, 0),
        ([0.0, 0, 15, 10], 1, 1),  # 2/3 of the left one, and one half of the box around both
        ([0.0, 0, 25, 10], 0, 1),
    ],
)
def test_protocols_differ_where_a_phrase_has_several_boxes(register_records, box, hit_any, hit_merged):
    records = [{**RECORDS[0], "phrases": [[(0, 9)]], "annotations": RECORDS[0]["annotations"][:2]}]
    results = _results(register_records(records), [_output((box, 0.9, 0))], records, ranks=(1,))
    assert _overall(results) == {"R@1": 100 * hit_any, "merged_R@1": 100 * hit_merged}


def test_the_threshold_counts(register_records):
    records = RECORDS[1:2]
    near = [_output(([60.0, 60, 70, 68], 0.9, 0))]  # IoU 0.8
    name = register_records(records)
    assert _results(name, near, records)["R@1"] == 100
    assert _results(name, near, records, iou_threshold=0.9)["R@1"] == 0
    assert "IoU >= 0.9" in PhraseGroundingEvaluator(name, iou_threshold=0.9).protocol()["match"]


def test_captions_without_an_output_are_missed(register_records, caplog):
    results = _results(register_records(RECORDS), TRUTH[:1], RECORDS[:1])
    assert results["R@1"] == pytest.approx(200 / 3) and "1 of 2 captions have no output" in caplog.text


def test_records_that_cannot_be_counted_are_refused(register_records):
    with pytest.raises(ValueError, match="the id 2 of .* is another caption's too"):
        PhraseGroundingEvaluator(register_records([RECORDS[1]] * 2))
    with pytest.raises(ValueError, match="no phrase with a box"):
        PhraseGroundingEvaluator(register_records(RECORDS[2:]))
    with pytest.raises(ValueError, match=r"ranks \(0,\)"):
        PhraseGroundingEvaluator(register_records(RECORDS), ranks=(0,))
