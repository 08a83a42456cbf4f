"""Every fault planted in a data set is found, and what is in order is not complained about."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from grounding_dino.data.check import SetReport, check_dataset, decoded_samples
from grounding_dino.data.check_text import TextCheck
from grounding_dino.data.datasets import register_coco
from grounding_dino.data.findings import Findings
from grounding_dino.data.segmentation_maps import write_panoptic_map

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

Record = dict[str, Any]


@pytest.fixture(autouse=True)
def _forget_data_sets() -> Iterator[None]:
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def coco(tmp_path: Path) -> Callable[..., str]:
    """`coco(**changes)`: registers three pictures with two objects each, with parts of the json replaced."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    sizes = [(60, 40), (80, 40), (60, 60)]
    for number, size in enumerate(sizes, 1):
        Image.new("RGB", size).save(folder / f"{number}.png")
    images = [
        {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        for number, (width, height) in enumerate(sizes, 1)
    ]
    objects = [
        {"id": number, "image_id": 1 + number // 2, "category_id": 1 + number % 2, "bbox": [5 + number, 5, 20, 10]}
        for number in range(6)
    ]
    objects = [{**item, "id": item["id"] + 1, "area": 200, "iscrowd": 0} for item in objects]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]

    def register(name: str = "checked", **changes: Any) -> str:
        content = {"images": images, "annotations": objects, "categories": categories}
        for part, change in changes.items():
            content[part] = change(content[part])
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register_coco(name, str(tmp_path / f"{name}.json"), str(folder))
        return name

    return register


def said(report: SetReport) -> list[str]:
    return [str(finding) for finding in report.findings.all()]


def test_a_data_set_in_order_has_facts_and_no_finding(tiny_cfg: CfgNode, coco: Callable[..., str]) -> None:
    report = check_dataset(tiny_cfg, coco())
    assert said(report) == []
    expected = {
        "pictures (records)": 3,
        "pictures without an object": 0,
        "objects": 6,
        "crowd regions": 0,
        "objects a picture, mean": 2.0,
        "objects a picture, most": 2,
        "size, smallest": "60 x 40",
        "size, median": "80 x 40",
        "size, largest": "60 x 60",
        "categories": 2,
        "categories without a box": 0,
        "tokens of all names": "6 (limit 256)",
        "prompts for all names": 1,
        "pictures decoded": "3 of 3",
    }
    assert {key: report.facts[key] for key in expected} == expected
    assert report.sizes == {(40, 60), (40, 80), (60, 60)} and report.most_objects == 2


def first(**change: Any) -> Callable[[list[Record]], list[Record]]:
    """Changes the first entry of a list."""
    return lambda entries: [{**entries[0], **change}, *entries[1:]]


def plus(**entry: Any) -> Callable[[list[Record]], list[Record]]:
    """Adds a copy of the first entry with changes."""
    return lambda entries: [*entries, {**entries[0], **entry}]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"annotations": first(bbox=[5, 5, 0, 10])}, "error: .*dropped annotations whose box has no area: 1"),
        ({"annotations": first(bbox=[500, 5, 9, 9])}, "error: .*dropped annotations whose box is outside the picture"),
        ({"annotations": first(bbox=[5, 5, 99, 10])}, "warning: .*clipped boxes that stand out of the picture: 1"),
        ({"annotations": first(bbox=[5, 5, 0.5, 10])}, r"warning: boxes thinner than a pixel: \[5.0, .*1.png"),
        ({"annotations": plus(image_id=2)}, "warning: .*renumbered annotations with an id that was there already: 1"),
        ({"annotations": plus(id=99)}, "warning: objects annotated twice, with one box and class: .*1.png"),
        ({"annotations": first(category_id=9)}, "error: .*dropped annotations of categories that are not listed"),
        ({"annotations": first(image_id=9)}, "error: .*dropped annotations of pictures that are not listed"),
        ({"images": plus(file_name="2.png")}, "error: .*dropped pictures whose id was there already: 1"),
        ({"images": plus(id=9, file_name="9.png")}, "error: .*dropped pictures that are missing in .*9.png"),
        ({"images": plus(id=9)}, "warning: pictures that are listed twice: 1.png"),
        (
            {"images": first(width=61)},
            r"error: pictures of another size than annotated .*: 1.png is 60 x 40, its record says 61 x 40",
        ),
        ({"categories": plus(id=3, name="bird")}, "warning: categories without a box: bird"),
        ({"categories": plus(id=3, name="Cat ")}, "warning: categories that prompts write alike: 'cat' and 'Cat '"),
        (
            {"categories": first(name="\u4e2d\u2603x\u2603")},
            "warning: names with words that the vocabulary does not know",
        ),
        (
            {"categories": first(name=7)},
            "error: the data set cannot be loaded: category 0 .* has no 'name' that is text",
        ),
        ({"annotations": lambda entries: []}, "error: no picture has an object"),
    ],
)
def test_faults_of_a_coco_file(
    tiny_cfg: CfgNode, coco: Callable[..., str], changes: dict[str, Any], sentence: str
) -> None:
    found = said(check_dataset(tiny_cfg, coco(**changes)))
    assert any(re.match(sentence, line) for line in found), found


def test_pictures_that_cannot_be_read_are_found_where_they_are_looked_for(
    tiny_cfg: CfgNode, coco: Callable[..., str], tmp_path: Path
) -> None:
    whole = (tmp_path / "pictures" / "3.png").read_bytes()
    (tmp_path / "pictures" / "3.png").write_bytes(whole[:50])
    name = coco()
    (line,) = said(check_dataset(tiny_cfg, name, num_pictures=None))
    assert line.startswith("error: pictures that cannot be read: 3.png (")
    few = check_dataset(tiny_cfg, name, num_pictures=1)
    assert said(few) == [] and few.facts["pictures decoded"] == "1 of 3"
    report = check_dataset(tiny_cfg, name)
    assert len(decoded_samples(tiny_cfg, report, 5)) == 2


def test_names_longer_than_a_prompt_and_lists_of_several_prompts(tiny_cfg: CfgNode, coco: Callable[..., str]) -> None:
    name = coco(categories=plus(id=3, name="a very long name indeed"))
    tiny_cfg.MODEL.TEXT_ENCODER.MAX_TOKENS = 7
    report = check_dataset(tiny_cfg, name)
    assert any(
        "names that no prompt holds: 'a very long name indeed' of the categories has 5 tokens" in s
        for s in said(report)
    )
    assert report.facts["tokens of all names"] == "6 (limit 7)" and report.facts["prompts for all names"] == 1
    assert report.facts["longest name"] == "'a very long name indeed' (5 tokens)"
    tiny_cfg.MODEL.TEXT_ENCODER.MAX_TOKENS = 5
    assert check_dataset(tiny_cfg, name).facts["prompts for all names"] == 2
    assert decoded_samples(tiny_cfg, report, 5) == []
    assert any("no training sample can be made: the name 'a very long" in line for line in said(report))


def test_texts_are_counted_as_glip_reads_them(tiny_cfg: CfgNode) -> None:
    """One token more for names, and no period behind a caption."""
    facts = {}
    for sub_sentence in (True, False):
        tiny_cfg.merge_from_list(
            ["MODEL.TEXT_ENCODER.MAX_TOKENS", 5, "MODEL.TEXT_ENCODER.SUB_SENTENCE_ON", sub_sentence]
        )
        findings = Findings()
        check = TextCheck(tiny_cfg, findings)
        facts[sub_sentence] = check.class_names(["cat", "dog"])
        check.add_caption({"caption": "cat on mat", "phrases": [[(7, 10)]]})
        assert check.add_name("red hot dog", "the categories") == (not sub_sentence)
        assert check.longest_caption == 6 - (not sub_sentence)
        assert any("captions that are cut" in line for line in map(str, findings.all())) == sub_sentence
    assert facts[True] == {"tokens of all names": "6 (limit 5)", "prompts for all names": 2}
    assert facts[False] == {"tokens of all names": "5 (limit 5)", "prompts for all names": 1}


def test_more_objects_than_a_model_finds(tiny_cfg: CfgNode, coco: Callable[..., str]) -> None:
    tiny_cfg.MODEL.QUERY_SELECTION.NUM_QUERIES, tiny_cfg.TEST.DETECTIONS_PER_IMAGE = 1, 2
    (line,) = said(check_dataset(tiny_cfg, coco()))
    assert line == "warning: a picture has more objects than MODEL.QUERY_SELECTION.NUM_QUERIES: 2 objects, 1"


def test_prompt_names_are_what_is_checked(tiny_cfg: CfgNode, coco: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(json.dumps({"cat": "small furry cat", "dog": "small furry cat"}))
    name = coco()
    tiny_cfg.DATASETS.TEXT = CfgNode({name: {"NAMES_FILE": str(tmp_path / "names.json")}})
    report = check_dataset(tiny_cfg, name)
    assert "'small furry cat'" in report.facts["longest name"]
    assert any("categories that prompts write alike" in line for line in said(report))
    tiny_cfg.DATASETS.TEXT = CfgNode({name: {"NAMES_FILE": str(tmp_path / "nowhere.json")}})
    assert any(
        "error: DATASETS.TEXT cannot be used: there is no file" in s for s in said(check_dataset(tiny_cfg, name))
    )


# ------------------------------------------------------------------- records that no reader of this project has cleaned


@pytest.fixture
def raw(tmp_path: Path) -> Callable[..., str]:
    """`raw(record, ..., classes=["cat"])`: a data set of changed records, each with one object of class 0."""
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    box = {"bbox": [5, 5, 20, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    plain = {"file_name": str(tmp_path / "a.png"), "width": 60, "height": 40, "annotations": [box]}

    def register(*changes: Record, classes: Sequence[str] = ("cat",)) -> str:
        records = [{**plain, "image_id": place, **change} for place, change in enumerate(changes)]
        DatasetCatalog.register("raw", lambda: records)
        if classes:
            MetadataCatalog.get("raw").thing_classes = list(classes)
        return "raw"

    return register


def annotations(**change: Any) -> Record:
    box = {"bbox": [5, 5, 20, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    return {"annotations": [{**box, **change}]}


LONG = "a cat and " + " and ".join(["a dog"] * 200)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (annotations(bbox=[5, 5, float("nan"), 10]), "error: boxes without an area: "),
        (annotations(bbox=[5, 5, 20, 90]), "warning: boxes that stand out of their picture: "),
        ({"caption": LONG, "phrases": [[0, 5]]}, "warning: captions that are cut to 256 tokens: "),
        (
            {"caption": LONG, "phrases": [[len(LONG) - 5, len(LONG)]]},
            "warning: phrases beyond the cut of their caption: ",
        ),
        ({"caption": "a cat", "phrases": [[0, 50]]}, "error: captions that are no prompt: "),
        ({"caption": " ...", "phrases": [[0, 2]]}, "error: captions that are no prompt: "),
        ({"categories": ["."]}, "error: names that no prompt holds: '.' of a.png contains no word"),
        ({"caption": "a cat", "phrases": []}, "error: objects of a class that is not there: class 0 of 0"),
    ],
)
def test_faults_of_records(tiny_cfg: CfgNode, raw: Callable[..., str], record: Record, sentence: str) -> None:
    found = said(check_dataset(tiny_cfg, raw(record, {})))
    assert any(line.startswith(sentence) for line in found), found


def test_classes_that_are_not_there(tiny_cfg: CfgNode, raw: Callable[..., str]) -> None:
    record = {"categories": ["cat"], **annotations(category_id=1)}
    report = check_dataset(tiny_cfg, raw(record, {"categories": ["cat"]}, classes=()))
    assert said(report) == ["error: objects of a class that is not there: class 1 of 1, a.png"]
    assert len(decoded_samples(tiny_cfg, report, 5)) == 1
    assert any(line.startswith("error: records that are no training sample: a.png") for line in said(report))


def test_classes_that_a_data_set_does_not_have(tiny_cfg: CfgNode, raw: Callable[..., str]) -> None:
    (line,) = said(check_dataset(tiny_cfg, raw(annotations(category_id=1))))
    assert "error: the data set cannot be loaded: " in line and "class 1" in line


def test_two_pictures_of_one_id(tiny_cfg: CfgNode, raw: Callable[..., str]) -> None:
    found = said(check_dataset(tiny_cfg, raw({"image_id": 7}, {"image_id": 7})))
    assert "error: pictures with the id of another: id 7, a.png" in found


def test_kinds_of_text_are_counted(tiny_cfg: CfgNode, raw: Callable[..., str]) -> None:
    expression = {"categories": ["the cat"], "referring": True}
    report = check_dataset(tiny_cfg, raw({"caption": "a cat"}, {"caption": "a cat."}, expression, {}))
    assert report.facts["text"] == "captions (2), expressions (1), class names (1)"
    assert report.facts["tokens of the longest caption"] == "5 (limit 256)"
    assert not report.findings.has_errors
    assert [set(sample) & {"caption", "categories"} for sample in decoded_samples(tiny_cfg, report, 4)] == [
        {"caption"},
        {"caption"},
        {"categories"},
        {"categories"},
    ]


def test_an_unknown_data_set(tiny_cfg: CfgNode) -> None:
    report = check_dataset(tiny_cfg, "nowhere")
    assert said(report)[0].startswith("error: the data set cannot be loaded: there is no data set 'nowhere'")
    assert not report.records


@pytest.mark.parametrize(
    ("segmentation", "sentence"),
    [
        ({"size": [40, 60], "counts": [2400]}, "warning: masks without a pixel: annotation 0 of 1.png"),
        (None, r"error: objects without a mask \(left out of a training with masks\): 1.png"),
        ({"size": [40, 60], "counts": [7]}, r"dropped unusable segmentations .* fill 7 pixels of 2400"),
    ],
)
def test_masks_are_looked_at_where_they_are_trained(
    tiny_cfg: CfgNode, coco: Callable[..., str], segmentation: Any, sentence: str
) -> None:
    square = [[5, 5, 25, 5, 25, 15, 5, 15]]
    name = coco(annotations=lambda old: [{**a, "segmentation": square} for a in old])
    tiny_cfg.MODEL.MASK_ON = True
    assert said(check_dataset(tiny_cfg, name)) == []
    name = coco(
        "faulty",
        annotations=lambda old: [
            {**old[0], "segmentation": segmentation},
            *({**a, "segmentation": square} for a in old[1:]),
        ],
    )
    assert any(re.search(sentence, finding) for finding in said(check_dataset(tiny_cfg, name)))


def test_maps_of_segments_are_held_against_their_records(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    write_panoptic_map(tmp_path / "ids.png", np.full((40, 60), 7))
    Image.new("L", (60, 40)).save(tmp_path / "labels.png")
    Image.new("L", (30, 40)).save(tmp_path / "small.png")
    names = {"file_name": str(tmp_path / "a.png"), "pan_seg_file_name": str(tmp_path / "ids.png")}
    segments = [{"id": 7, "category_id": 0, "iscrowd": 0}]

    def findings(name: str, **change: Any) -> list[str]:
        record = {**names, "image_id": 1, "segments_info": segments, "sem_seg_file_name": str(tmp_path / "labels.png")}
        DatasetCatalog.register(name, lambda: [{**record, **change}])
        MetadataCatalog.get(name).set(stuff_classes=["sky"])
        return said(check_dataset(tiny_cfg, name))

    assert findings("maps") == []
    sentence = "error: maps of segments that cannot be used: a.png: .*ids.png' has pixels of the segment 7"
    assert any(re.search(sentence, line) for line in findings("ids", segments_info=[]))
    small = findings("small", sem_seg_file_name=str(tmp_path / "small.png"))
    assert small == ["error: maps of another size than their pictures: a.png: (40, 30), (40, 60)"]


def test_a_set_of_semantic_maps_alone_has_something_to_learn(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    Image.new("L", (60, 40)).save(tmp_path / "labels.png")
    record = {"file_name": str(tmp_path / "a.png"), "image_id": 1, "sem_seg_file_name": str(tmp_path / "labels.png")}
    DatasetCatalog.register("labels", lambda: [record])
    MetadataCatalog.get("labels").set(stuff_classes=["sky", "ground"])
    report = check_dataset(tiny_cfg, "labels")
    assert said(report) == [] and report.facts["pictures without an object"] == 0


def test_glip_has_no_queries_to_run_out_of(tiny_glip_cfg: CfgNode, coco: Callable[..., str]) -> None:
    tiny_glip_cfg.MODEL.QUERY_SELECTION.NUM_QUERIES, tiny_glip_cfg.TEST.DETECTIONS_PER_IMAGE = 1, 1
    (line,) = said(check_dataset(tiny_glip_cfg, coco()))
    assert line == "warning: a picture has more objects than TEST.DETECTIONS_PER_IMAGE: 2 objects, 1"
