import json

from grounding_dino.evaluation.refexp import RefExpEvaluator

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

NAME = "test_refexp"


def _annotation(category, box):
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category}


RECORDS = [
    {"expression_ids": ["a"], "annotations": [_annotation(0, [0, 0, 10, 10])]},
    {"expression_ids": ["b", "c"], "annotations": [_annotation(0, [20, 0, 10, 10]), _annotation(1, [0, 20, 10, 10])]},
]


@pytest.fixture
def evaluator(tmp_path):
    DatasetCatalog.register(NAME, lambda: RECORDS)
    yield RefExpEvaluator(NAME, ranks=(1, 2), output_dir=str(tmp_path / "results"))
    DatasetCatalog.pop(NAME)
    MetadataCatalog.pop(NAME, None)


def _output(*detections):
    instances = Instances((50, 50))
    instances.pred_boxes = Boxes(torch.tensor([box for box, _, _ in detections], dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor([score for _, score, _ in detections])
    instances.pred_classes = torch.tensor([index for _, _, index in detections], dtype=torch.int64)
    return {"instances": instances}


def test_the_best_scored_box_of_each_expression_decides(evaluator, tmp_path):
    evaluator.reset()
    # a: the second box is right; b: the best is right (IoU 0.8); c: its only box is wrong, b's box there is not its own
    evaluator.process(
        RECORDS,
        [
            _output(([0.0, 0, 10, 10], 0.3, 0), ([30.0, 30, 40, 40], 0.9, 0)),
            _output(([20.0, 0, 30, 8], 0.5, 0), ([0.0, 20, 10, 30], 0.4, 0), ([40.0, 40, 50, 50], 0.9, 1)),
        ],
    )
    results = evaluator.evaluate()["refexp"]
    assert results["P@1"] == pytest.approx(100 / 3)
    assert results["P@2"] == pytest.approx(200 / 3)
    assert results["mIoU"] == pytest.approx(80 / 3)
    overlaps = json.loads((tmp_path / "results" / "refexp_overlaps.json").read_text())
    assert overlaps == {"a": [0, 1], "b": [pytest.approx(0.8), 0], "c": [0]}


def test_unanswered_expressions_count_as_wrong_and_reset_forgets(evaluator, caplog):
    evaluator.reset()
    evaluator.process(RECORDS[:1], [_output(([0.0, 0, 10, 10], 0.3, 0))])
    assert evaluator.evaluate()["refexp"]["P@1"] == pytest.approx(100 / 3)
    assert "2 of 3 expressions have no output" in caplog.text
    evaluator.reset()
    evaluator.process(RECORDS[:1], [_output()])
    assert evaluator.evaluate()["refexp"] == {"P@1": 0, "P@2": 0, "mIoU": 0}


def _registered(request, records):
    DatasetCatalog.register("test_refexp_other", lambda: records)
    request.addfinalizer(lambda: (DatasetCatalog.pop("test_refexp_other"), MetadataCatalog.pop("test_refexp_other", 0)))
    return "test_refexp_other"


def test_any_of_several_boxes_is_right(request):
    boxes = [_annotation(0, [0, 0, 10, 10]), _annotation(0, [20, 0, 10, 10])]
    records = [{"expression_ids": ["a"], "annotations": boxes}]
    evaluator = RefExpEvaluator(_registered(request, records), ranks=(1, 2))
    for detected, right in (([0.0, 0, 10, 10], 100), ([20.0, 0, 30, 10], 100), ([40.0, 0, 50, 10], 0)):
        evaluator.reset()
        evaluator.process(records, [_output((detected, 0.5, 0))])
        assert evaluator.evaluate()["refexp"] == {"P@1": right, "P@2": right, "mIoU": right}
    evaluator.reset()
    evaluator.process(records, [_output()])
    assert evaluator.evaluate()["refexp"]["P@1"] == 0


@pytest.mark.parametrize(
    ("records", "sentence"),
    [([RECORDS[0]] * 2, "id 'a' .* another's too"), ([{**RECORDS[0], "annotations": []}], "'a' .* has no box")],
)
def test_records_that_cannot_be_counted_are_refused(request, records, sentence):
    with pytest.raises(ValueError, match=sentence):
        RefExpEvaluator(_registered(request, records))


def test_ranks_are_checked():
    with pytest.raises(ValueError, match="ranks"):
        RefExpEvaluator(NAME, ranks=(0, 1))


def test_the_truth_gives_100_and_swapped_expressions_do_not(evaluator):
    truth = [
        _output(([0.0, 0, 10, 10], 0.3, 0)),
        _output(([20.0, 0, 30, 10], 0.5, 0), ([0.0, 20, 10, 30], 0.4, 1)),
    ]
    evaluator.reset()
    evaluator.process(RECORDS, truth)
    assert evaluator.evaluate()["refexp"] == {"P@1": 100, "P@2": 100, "mIoU": 100}
    swapped = [truth[0], _output(([20.0, 0, 30, 10], 0.5, 1), ([0.0, 20, 10, 30], 0.4, 0))]
    evaluator.process(RECORDS, swapped)
    assert evaluator.evaluate()["refexp"]["P@2"] == pytest.approx(100 / 3)


def test_the_protocol_names_score_and_match(request):
    records = [{**RECORDS[0], "token_score": "max"}]
    protocol = RefExpEvaluator(_registered(request, records), iou_threshold=0.6, prompt="one alone").protocol()
    assert protocol["score"].startswith("of an expression's best token") and protocol["expressions"] == "1"
    assert "0.6" in protocol["match"] and "1, 5, 10" in protocol["match"] and protocol["prompt"] == "one alone"
