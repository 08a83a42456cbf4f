import json

from grounding_dino.evaluation.described_objects import DescribedObjectsEvaluator

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAMES = {4: "dog", 7: "a dog that wears no red hat", 9: "a star in the upper left of the big picture today"}
SIZE = 200
NUM_PICTURES = 6
NOT_SCORED = 12  # a description that pictures are asked for and the json file does not have


def _content():
    generator = torch.Generator().manual_seed(0)
    images = [{"id": n, "file_name": f"{n}.jpg", "height": SIZE, "width": SIZE} for n in range(NUM_PICTURES)]
    annotations = []
    for image in images:
        for number in (4, 4, 7, 9)[: 2 + image["id"] % 3]:
            x, y = (torch.rand(2, generator=generator) * 100).round().tolist()
            w, h = (10 + torch.rand(2, generator=generator) * 90).round().tolist()
            annotation = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": number, "iscrowd": 0}
            annotations.append({**annotation, "bbox": [x, y, w, h], "area": w * h})
    categories = [{"id": number, "name": name} for number, name in NAMES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


CONTENT = _content()
ASKED = {n: [4, 9, NOT_SCORED, 7] if n % 2 else [7, 4, 9] for n in range(NUM_PICTURES)}  # any order
RECORDS = [{"image_id": n, "description_ids": asked} for n, asked in ASKED.items()]


@pytest.fixture
def evaluator(tmp_path):
    name = "test_described_objects"
    (tmp_path / "d3.json").write_text(json.dumps(CONTENT))
    DatasetCatalog.register(name, lambda: RECORDS)
    MetadataCatalog.get(name).set(json_file=str(tmp_path / "d3.json"), absence_ids=frozenset({7}))
    yield lambda **options: DescribedObjectsEvaluator(name, output_dir=str(tmp_path / "out"), **options)
    DatasetCatalog.pop(name)
    MetadataCatalog.pop(name, None)


def _output(number, objects):
    """`objects`: (description id, XYWH box, score)."""
    instances = Instances((SIZE, SIZE))
    boxes = torch.tensor([box for _, box, _ in objects], dtype=torch.float32).reshape(-1, 4)
    instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
    instances.scores = torch.tensor([score for _, _, score in objects], dtype=torch.float32)
    instances.pred_classes = torch.tensor([ASKED[number].index(d) for d, _, _ in objects], dtype=torch.int64)
    return {"instances": instances}


def _perfect():
    outputs = []
    for number in ASKED:
        own = [a for a in CONTENT["annotations"] if a["image_id"] == number]
        outputs.append(_output(number, [(a["category_id"], a["bbox"], 0.9) for a in own]))
    return outputs


def _noisy():
    generator = torch.Generator().manual_seed(1)
    outputs = []
    for number, asked in ASKED.items():
        found = []
        for annotation in (a for a in CONTENT["annotations"] if a["image_id"] == number):
            moved = torch.tensor(annotation["bbox"]) + torch.randn(4, generator=generator) * 4
            found.append((annotation["category_id"], moved.clamp(min=1).tolist()))
        for description in asked:
            for _ in range(3):
                corner, side = torch.rand(2, generator=generator) * 100, 5 + torch.rand(2, generator=generator) * 80
                found.append((description, [*corner.tolist(), *side.tolist()]))
        scores = torch.rand(len(found), generator=generator).tolist()
        outputs.append(_output(number, [(*pair, score) for pair, score in zip(found, scores)]))
    return outputs


def _results(evaluator, outputs, records=RECORDS):
    evaluator.reset()
    evaluator.process(records, outputs)
    return evaluator.evaluate()["d3"]


def test_the_truth_gives_100_and_shuffled_descriptions_do_not(evaluator):
    results = _results(evaluator(), _perfect())
    assert set(results) >= {"AP", "AP50", "AP75", "AP_presence", "AP_absence", "AP_short", "AP_long", "AP_very_long"}
    assert all(value == pytest.approx(100) for value in results.values())
    shuffled = _perfect()
    for output in shuffled:
        output["instances"].pred_classes = (output["instances"].pred_classes + 1) % 3
    assert _results(evaluator(), shuffled)["AP"] < 20


def test_nothing_found_is_0(evaluator):
    results = _results(evaluator(), [_output(number, []) for number in ASKED])
    assert results["AP"] == results["AP_absence"] == 0


def _cocoeval(tmp_path, category_ids, max_detections=100):
    truth = COCO(str(tmp_path / "d3.json"))
    found = truth.loadRes(str(tmp_path / "out/coco_instances_results.json"))
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.params.catIds = category_ids
    evaluation.params.maxDets = [1, 10, max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def test_averages_equal_cocoeval_on_the_written_results(evaluator, tmp_path):
    results = _results(evaluator(), _noisy())
    evaluation = _cocoeval(tmp_path, list(NAMES))
    evaluation.summarize()
    keys = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    expected = {key: 100 * value for key, value in zip(keys, evaluation.stats) if value > -1}
    assert 5 < results["AP"] < 80
    assert {key: results[key] for key in keys if key in results} == pytest.approx(expected)
    for key, numbers in {
        "AP_presence": [4, 9],
        "AP_absence": [7],
        "AP_short": [4],
        "AP_long": [7],
        "AP_very_long": [9],
    }.items():
        part = _cocoeval(tmp_path, numbers)
        part.summarize()
        assert results[key] == pytest.approx(100 * part.stats[0]), key
    assert "AP_mid" not in results  # no description of four to six words
    written = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    assert {detection["category_id"] for detection in written} == set(NAMES)  # without what is not scored


def test_only_so_many_detections_count(evaluator):
    outputs = _noisy()
    assert _results(evaluator(max_detections=1), outputs)["AP"] != _results(evaluator(), outputs)["AP"]
    assert "the 7 best detections" in evaluator(max_detections=7).protocol()["AP"]
    with pytest.raises(ValueError, match="max_detections is 0"):
        evaluator(max_detections=0)


def test_pictures_without_an_output_are_missed(evaluator, caplog):
    results = _results(evaluator(), _perfect()[:3], RECORDS[:3])
    assert 0 < results["AP"] < 100 and "3 pictures of test_described_objects have no output" in caplog.text


def test_the_protocol_says_what_is_asked(evaluator):
    protocol = evaluator(prompt="one alone").protocol()
    assert protocol["descriptions"] == "3 scored; 3 to 4 asked for a picture" and protocol["prompt"] == "one alone"
