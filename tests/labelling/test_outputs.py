"""Label files, read back with the readers of the project and of their formats."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from grounding_dino.data.datasets.odvg import load_odvg
from grounding_dino.labelling.inputs import PictureInputs
from grounding_dino.labelling.journal import Journal
from grounding_dino.labelling.outputs import LabelFiles, spans_in
from grounding_dino.labelling.plan import write_plan
from grounding_dino.labelling.polygons import polygons_of
from grounding_dino.labelling.yolo import write_yolo
from grounding_dino.structures import RleMasks

import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO


def detection(label: str, box: list[float], score: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"label": label, "score": score, "box": box, **more}


FOUND = {  # of a.jpg, a.png, b.png, sub/a.png, sub/deep/c.png; b.png has failed
    0: [detection("cat", [1.5, 2.25, 30.0, 39.5], 0.9), detection("dog", [0.0, 0.0, 60.0, 40.0])],
    1: [],
    3: [detection("Cat", [10.0, 10.0, 11.0, 11.0])],
    4: [detection("dog", [59.2, 39.2, 60.0, 40.0])],
}


@pytest.fixture
def write(folder: Path, tmp_path: Path):
    """`write(*formats, found, names, more)`: the label files; returns their folder."""

    def run(
        *formats: str, found: dict[int, Any] = FOUND, names: Any = ("cat", "dog", "bird"), entry=None, **how
    ) -> Path:
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        plan = write_plan(out, PictureInputs([str(folder)]))
        if entry:
            lines = [json.dumps({**e, **entry(e)}) + "\n" for e in plan]
            (out / "pictures.jsonl").write_text("".join(lines))
        journal = Journal(out, plan.total)
        journal.add(
            [
                {"number": n, "height": 40, "width": 60, "detections": found[n]}
                if n in found
                else {"number": n, "error": "no picture \udcff"}
                for n in reversed(range(plan.total))
            ]
        )
        LabelFiles(out, str(folder), plan, journal, names, **how).write(formats)
        return out

    return run


def test_coco_is_read_by_pycocotools(write) -> None:
    coco = COCO(write("coco") / "coco.json")
    assert [coco.imgs[i]["file_name"] for i in coco.getImgIds()] == ["a.jpg", "a.png", "sub/a.png", "sub/deep/c.png"]
    assert coco.getImgIds() == [1, 2, 4, 5]  # the places in the list
    assert [category["name"] for category in coco.cats.values()] == ["cat", "dog", "bird"]
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert [a["bbox"] for a in annotations] == [[1.5, 2.25, 28.5, 37.25], [0, 0, 60, 40]]
    assert [a["category_id"] for a in annotations] == [1, 2] and annotations[0]["score"] == 0.9
    assert coco.getAnnIds() == [1, 2, 3, 4]


def test_odvg_is_read_by_the_projects_reader(write, folder: Path) -> None:
    records = load_odvg(str(write("odvg") / "odvg.jsonl"), str(folder), "labelled_odvg", strict=True)
    assert [Path(r["file_name"]).relative_to(folder).as_posix() for r in records][2:] == ["sub/a.png", "sub/deep/c.png"]
    assert [[a["category_id"] for a in r["annotations"]] for r in records] == [[0, 1], [], [0], [1]]
    assert records[0]["annotations"][0]["bbox"] == [1.5, 2.25, 28.5, 37.25]


def test_failures_have_a_file(write) -> None:
    (line,) = (write() / "failed.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["file_name"] == "b.png" and json.loads(line)["reason"] == "no picture \\udcff"


def test_yolo_gives_the_boxes_back(write, folder: Path) -> None:
    yolo = write("yolo") / "yolo"
    description = yaml.safe_load((yolo / "data.yaml").read_text())
    assert description["names"] == {0: "cat", 1: "dog", 2: "bird"} and Path(description["path"]) == yolo
    assert (yolo / "classes.txt").read_text() == "cat\ndog\nbird\n"
    listed = (yolo / description["train"]).read_text().splitlines()
    assert len(listed) == 4
    for name, number in zip(listed, FOUND):
        image = yolo / name
        labels = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")  # as Ultralytics finds them
        width, height = Image.open(image).size
        boxes = []
        for line in labels.read_text().splitlines():
            _, x, y, w, h = map(float, line.split())
            boxes.append([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height])
        for box, expected in zip(boxes, FOUND[number], strict=True):
            assert box == pytest.approx(expected["box"], abs=1e-3)
    assert (yolo / "images" / "a.jpg").resolve() == folder / "a.jpg"
    assert (yolo / "labels" / "a_2.txt").read_text() == "" and (yolo / "images" / "a_2.png").exists()


def test_voc_counts_pixels_from_one(write) -> None:
    voc = write("voc") / "voc"
    assert (voc / "ImageSets" / "Main" / "labelled.txt").read_text().split() == ["a", "a_2", "sub/a", "sub/deep/c"]
    boxes = {}
    for name in ("a", "a_2", "sub/a", "sub/deep/c"):
        tree = ElementTree.parse(voc / "Annotations" / f"{name}.xml")
        assert (tree.findtext("size/width"), tree.findtext("size/height")) == ("60", "40")
        boxes[name] = [
            (found.findtext("name"), *(int(value.text) for value in found.find("bndbox")))
            for found in tree.iter("object")
        ]
    assert boxes["a"] == [("cat", 3, 3, 30, 40), ("dog", 1, 1, 60, 40)] and boxes["a_2"] == []
    assert boxes["sub/a"] == [("cat", 11, 11, 11, 11)] and boxes["sub/deep/c"] == [("dog", 60, 40, 60, 40)]


def test_names_that_xml_cannot_hold(write) -> None:
    found = {0: [detection("a<b>&\x01 é😀", [0, 0, 9, 9])]}
    tree = ElementTree.parse(write("voc", found=found, names=None) / "voc" / "Annotations" / "a.xml")
    assert tree.findtext("object/name") == "a<b>& é😀"


def test_files_are_written_again_to_the_byte(write) -> None:
    formats = ("coco", "odvg", "yolo", "voc")
    before, after = ({file: file.read_bytes() for file in sorted(write(*formats).rglob("*.*"))} for _ in range(2))
    assert before == after and not [file for file in after if "partial" in file.name]


def test_what_else_lies_in_a_folder_of_labels_stays(write) -> None:
    yolo = write("yolo") / "yolo"
    (yolo / "runs").mkdir()
    (yolo / "labels" / "old.txt").touch()
    write("yolo")
    assert (yolo / "runs").exists() and not (yolo / "labels" / "old.txt").exists()


@pytest.mark.parametrize("kind", ["rle", "polygon"])
def test_masks(write, folder: Path, kind: str) -> None:
    pixels = torch.zeros(1, 40, 60, dtype=torch.bool)
    pixels[0, 5:25, 10:50] = True
    found = {0: [detection("cat", [10, 5, 50, 25], mask=RleMasks.encode(pixels)[0])]}
    out = write("coco", "odvg", "yolo", found=found, segmentation=kind)
    coco = COCO(out / "coco.json")
    assert coco.anns[1]["area"] == 800
    mask = torch.from_numpy(coco.annToMask(coco.anns[1])).bool()
    assert (mask & pixels[0]).sum() / (mask | pixels[0]).sum() > (0.999 if kind == "rle" else 0.9)
    (record,) = load_odvg(str(out / "odvg.jsonl"), str(folder), strict=True)
    assert "segmentation" in record["annotations"][0]
    line = (out / "yolo" / "labels" / "a.txt").read_text().split()
    assert len(line) == (5 if kind == "rle" else 9)


def test_a_mask_of_a_line_is_its_box_among_polygons(write) -> None:
    pixels = torch.zeros(1, 40, 60, dtype=torch.bool)
    pixels[0, 5, 10:50] = True
    out = write(
        "coco", found={0: [detection("cat", [10, 5, 50, 6], mask=RleMasks.encode(pixels)[0])]}, segmentation="polygon"
    )
    assert COCO(out / "coco.json").anns[1]["segmentation"] == [[10, 5, 50, 5, 50, 6, 10, 6]]


def test_outlines_of_several_parts_come_by_size() -> None:
    pixels = torch.zeros(1, 40, 60, dtype=torch.bool)
    pixels[0, 2:6, 2:6] = pixels[0, 10:30, 10:30] = True
    pixels[0, 35, 35] = True  # a single pixel has no outline
    rle = RleMasks.encode(pixels)[0]
    polygons = polygons_of(rle)
    assert len(polygons) == 2 and min(polygons[0]) == 10.5
    assert coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(polygons, 40, 60))) > 350


def test_captions_become_grounding_rows_and_classes(write, folder: Path) -> None:
    caption = "A man ' s hat, and a red-brown dog."
    found = {
        0: [detection("a man ' s hat", [0, 0, 9, 9]), detection("dog", [1, 1, 5, 5]), detection("dog", [2, 2, 6, 6])],
        1: [],
        3: [detection("red dog", [0, 0, 9, 9])],
    }
    out = write("odvg", "coco", found=found, names=None, entry=lambda entry: {"caption": caption})
    records = load_odvg(str(out / "odvg.jsonl"), str(folder), strict=True)
    assert [[caption[slice(*span)] for spans in r["phrases"] for span in spans] for r in records] == [
        ["A man ' s hat", "dog"],
        [],
        ["red", "dog"],
    ]
    assert [[a["category_id"] for a in r["annotations"]] for r in records] == [[0, 1, 1], [], [0]]
    coco = COCO(out / "coco.json")
    assert [category["name"] for category in coco.cats.values()] == ["a man ' s hat", "dog", "red dog"]


def test_names_of_single_pictures_are_collected_in_the_order_of_the_list(write) -> None:
    own = {0: ["dog", "Cat"], 3: ["bird", "CAT", "cow"]}
    out = write("coco", names=None, entry=lambda entry: {"categories": own.get(entry["number"], [])})
    coco = COCO(out / "coco.json")
    assert [category["name"] for category in coco.cats.values()] == ["dog", "Cat", "bird", "cow"]
    assert [coco.anns[i]["category_id"] for i in coco.getAnnIds()] == [2, 1, 2, 1]


@pytest.mark.parametrize(
    ("caption", "phrase", "words"),
    [
        ("Two DOGS left of it", "two dogs", ["Two DOGS"]),
        ("the man's hat", "man ' s hat", ["man's hat"]),
        ("red car, blue car", "red blue", ["red", "blue"]),
        ("a cat.", "unknown", ["a cat"]),
        ("...", "x", ["..."]),
    ],
)
def test_phrases_are_found_in_their_caption(caption: str, phrase: str, words: list[str]) -> None:
    assert [caption[start:end] for start, end in spans_in(caption, phrase)] == words


@pytest.mark.parametrize("pictures", ["link", "copy"])
def test_a_picture_of_a_list_without_suffix_gets_one(folder: Path, tmp_path: Path, pictures: str) -> None:
    file = (folder / "a.png").rename(folder / "plain")
    record = {"file_name": "plain", "label_name": "plain", "source": {"path": str(file)}, "annotations": []}
    write_yolo(tmp_path / "yolo", [record], ["cat"], pictures, Counter())
    assert (tmp_path / "yolo" / "images" / "plain.png").read_bytes() == file.read_bytes()
