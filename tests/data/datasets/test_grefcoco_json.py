import json

from grounding_dino.data.datasets import CocoFormatError
from grounding_dino.data.datasets.grefcoco_json import convert_grefcoco, main

import pytest
from detectron2.data import DatasetCatalog


def _ref(number, sentences, objects, split="val", image=7):
    return {
        **{"ref_id": number, "image_id": image, "split": split, "ann_id": objects, "category_id": [1]},
        **{"file_name": "COCO_train2014_000000000007_11.jpg", "no_target": objects == [-1]},
        "sentences": [{"sent": sentence, "raw": sentence.upper(), "sent_id": 1} for sentence in sentences],
    }


REFS = [
    _ref(1, ["both rings", "the two rings"], [11, 12]),
    _ref(2, ["the star"], 12),  # one id, in no list
    _ref(3, ["a green dog"], [-1]),
    _ref(4, ["some ring"], [11], split="testA"),
]
INSTANCES = {
    "images": [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": 40, "width": 60}],
    "annotations": [
        {"id": 11, "image_id": 7, "category_id": 5, "bbox": [1, 2, 3, 4], "area": 9.5, "iscrowd": 0},
        {"id": 12, "image_id": 7, "category_id": 6, "bbox": [20, 2, 3, 4], "area": 12, "iscrowd": 0},
    ],
    "categories": [{"id": 5, "name": "ring"}, {"id": 6, "name": "star"}],
}


@pytest.fixture
def write(data_root, write_picture):
    def files(refs=REFS, instances=INSTANCES):
        folder = data_root / "coco/grefs"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "grefs(unc).json").write_text(json.dumps(refs))
        (folder / "instances.json").write_text(json.dumps(instances))
        write_picture(data_root / "coco/train2014/COCO_train2014_000000000007.jpg")
        return folder / "grefs(unc).json", folder / "instances.json"

    return files


def test_the_command_writes_what_the_data_set_reads(write, capsys):
    write()
    main(["--splits", "val", "testA"])
    printed = capsys.readouterr().out
    assert "finetune_grefcoco_val.json: 4 expressions, 1 of them without a target" in printed
    (record,) = DatasetCatalog.get("grefcoco_val")
    assert record["file_name"].endswith("coco/train2014/COCO_train2014_000000000007.jpg")
    assert record["categories"] == ["both rings", "the two rings", "the star", "a green dog"]
    assert [(a["category_id"], a["bbox"]) for a in record["annotations"]] == [
        *((index, box) for index in (0, 1) for box in ([1, 2, 3, 4], [20, 2, 3, 4])),
        (2, [20, 2, 3, 4]),
    ]
    assert DatasetCatalog.get("grefcoco_testA")[0]["categories"] == ["some ring"]


@pytest.mark.parametrize(
    ("refs", "sentence"),
    [
        ({"a": 1}, "is no list of objects"),
        ([_ref(5, ["a"], [99])], "ref_id 5 of .* names object 99, which is not in"),
        ([_ref(5, ["a"], [11], image=8)], "ref_id 5 of .* is of a picture that is not in"),
        ([{**_ref(5, [], [11]), "sentences": None}], "ref_id 5 of .* has no list 'sentences'"),
        ([{**_ref(5, [], [11]), "sentences": [{"raw": "a"}]}], "ref_id 5 of .* 'sent' is no text"),
        ([_ref(5, ["a"], [11], split="train")], "no entry of the split 'val'"),
    ],
)
def test_other_content_is_refused_with_the_entry(write, refs, sentence):
    with pytest.raises(CocoFormatError, match=sentence):
        convert_grefcoco(*write(refs), "val")


def test_absent_files_are_named(data_root, write):
    with pytest.raises(FileNotFoundError, match=r"grefs\(unc\).json.*github.com/henghuiding/gRefCOCO"):
        main([])
    refs, instances = write()
    refs.write_text("{")
    with pytest.raises(CocoFormatError, match="not readable as JSON"):
        convert_grefcoco(refs, instances, "val")
    refs.unlink()
    with pytest.raises(FileNotFoundError, match="gRefCOCO"):
        convert_grefcoco(refs, instances, "val")
