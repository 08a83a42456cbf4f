import csv
import json

from grounding_dino.data.build import load_records
from grounding_dino.data.prepare import openimages

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

COLUMNS = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
).split(",")
CLASSES = [["/m/014j1m", "Apple"], ["/m/0k4j", "Car"]]


def _row(picture, label="/m/0k4j", box=(0.25, 0.5, 0.5, 1.0), group=0):
    return [picture, "xclick", label, 1, *box, 0, 0, group, 0, 0]


@pytest.fixture
def write_csv(data_root, write_picture):
    def write(rows, split="val", header=False):
        folder, name = openimages.SPLITS[split]
        annotations = data_root / "OpenImages" / "annotations"
        annotations.mkdir(parents=True, exist_ok=True)
        with open(annotations / name, "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        with open(annotations / openimages.CLASSES, "w", newline="") as file:
            csv.writer(file).writerows([["LabelName", "DisplayName"], *CLASSES] if header else CLASSES)
        for picture in {row[0] for row in rows} - {"absent"}:
            write_picture(data_root / "OpenImages" / folder / f"{picture}.jpg")
        return annotations / f"openimages_v6_{split}.json"

    return write


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_in_fractions_become_boxes_in_pixels(split, header, write_csv):
    write_csv([_row("a"), _row("a", "/m/014j1m", (0, 1, 0, 0.125)), _row("b", group=1)], split, header)
    assert openimages.main(["--splits", split, "--quiet"]) == 0
    first, second = load_records([f"openimages_v6_{split}"])
    assert [item["bbox"] for item in first["annotations"]] == [[15, 20, 15, 20], [0, 0, 60, 5]]
    assert [item["category_id"] for item in first["annotations"]] == [1, 0]
    assert [item["iscrowd"] for item in second["annotations"]] == [1]
    assert MetadataCatalog.get(f"openimages_v6_{split}").thing_classes == ["Apple", "Car"]


def test_pictures_are_found_in_the_folders_that_archives_unpack_into(data_root, write_csv):
    write_csv([_row("a"), _row("b")], "train")
    train = data_root / "OpenImages/train"
    (train / "train_0").mkdir()
    (train / "b.jpg").rename(train / "train_0/b.jpg")
    openimages.main(["--splits", "train", "--quiet"])
    records = load_records(["openimages_v6_train"])
    assert [record["file_name"] for record in records] == [str(train / "a.jpg"), str(train / "train_0/b.jpg")]


def test_what_is_left_out_is_counted_and_the_file_needs_no_repair(write_csv, capsys, caplog):
    rows = [_row("a"), _row("absent"), _row("a", "/m/unknown"), _row("a", box=(0.5, 0.5, 0, 1)), _row("a")]
    json_file = write_csv(rows)
    openimages.main(["--splits", "val", "--quiet"])
    output = capsys.readouterr().out
    for count in (
        "1 pictures that are missing or broken",
        "1 boxes of missing pictures",
        "1 boxes of unlisted classes",
        "1 boxes without area",
        "2 boxes,",
        "1 pictures",
    ):
        assert count in output + ","
    annotations = json.loads(json_file.read_text())["annotations"]
    assert [annotation["id"] for annotation in annotations] == [1, 2]
    assert not caplog.records


def test_a_picture_that_is_read_turned_has_the_size_of_the_turned_one(data_root, write_csv):
    write_csv([_row("a")])
    exif = Image.Exif()
    exif[0x0112] = 6
    path = data_root / "OpenImages/validation/a.jpg"
    Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8)).save(path, exif=exif)
    openimages.convert("val", data_root, quiet=True)
    (record,) = load_records(["openimages_v6_val"])
    assert (record["height"], record["width"]) == (60, 40)
    assert record["annotations"][0]["bbox"] == [10, 30, 10, 30]


def test_boxes_of_other_columns_are_refused(data_root, write_csv):
    json_file = write_csv([_row("a")])
    (json_file.parent / openimages.SPLITS["val"][1]).write_text("ImageID,LabelName\na,/m/0k4j\n")
    with pytest.raises(ValueError, match="has the columns"):
        openimages.convert("val", data_root, quiet=True)


def test_nothing_is_written_where_no_picture_is_there(write_csv, data_root):
    (data_root / "OpenImages/validation").mkdir(parents=True)
    json_file = write_csv([_row("absent")])
    with pytest.raises(ValueError, match="has none of the 1 pictures"):
        openimages.convert("val", data_root, quiet=True)
    assert not json_file.exists()


def test_missing_files_are_named_with_their_source(data_root, capsys):
    with pytest.raises(SystemExit):
        openimages.main(["--splits", "val", "--quiet"])
    message = capsys.readouterr().err
    assert "validation-annotations-bbox.csv" in message and "storage.googleapis.com" in message


def test_a_label_without_a_name_is_refused(tmp_path):
    (tmp_path / "classes.csv").write_text("/m/014j1m,\n")
    with pytest.raises(ValueError, match="a label without a name"):
        openimages.read_classes(tmp_path / "classes.csv")
