"""The written list of pictures."""

from __future__ import annotations

import os
from pathlib import Path

from grounding_dino.labelling.inputs import Listed, PictureInputs
from grounding_dino.labelling.plan import digest_of, write_plan

import pytest


def picture(name: str) -> Listed:
    return Listed(name, {"path": f"/p/{name}"})


def test_pictures_of_equal_names_get_files_of_their_own(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "x/a.jpg", "A.gif", "a_2.jpg"]
    labels = [entry["label_name"] for entry in write_plan(tmp_path, map(picture, names))]
    assert labels == ["a", "a_2", "x/a", "A_3", "a_2_2"]


def test_a_picture_that_is_listed_twice_is_there_once(folder: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, PictureInputs([str(folder), str(folder / "sub"), str(folder / "a.png")]))
    assert (plan.total, plan.repeated) == (5, 3)
    assert [entry["number"] for entry in plan] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "name", ["../../etc/x.jpg", "/etc/x.jpg", "a/../../x.jpg", "n" * 300 + ".jpg", "..", "a\0b.png"]
)
def test_names_out_of_archives_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    (entry,) = write_plan(tmp_path, [picture(name)])
    path = tmp_path / "labels" / f"{entry['label_name']}.txt"
    path.parent.mkdir(parents=True)
    path.touch()
    assert (tmp_path / "labels") in path.resolve().parents


def test_a_name_that_is_no_text_is_a_failure_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff.png")).touch()
    (entry,) = write_plan(tmp_path, PictureInputs([str(tmp_path / "in")]))
    assert "no valid UTF-8" in entry["error"]


def test_nothing_to_label_is_said(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="there is no picture"):
        write_plan(tmp_path, PictureInputs([str(tmp_path / "in")]))


def test_the_digest_tells_other_pictures(folder: Path, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, PictureInputs([str(folder)]))
    assert digest_of(PictureInputs([str(folder)])) == plan.digest
    (folder / "b.png").rename(folder / "z.png")
    assert digest_of(PictureInputs([str(folder)])) != plan.digest


def test_labels_stand_where_a_file_and_a_folder_would_have_one_name(tmp_path: Path) -> None:
    names = ["a.jpg", "a.txt/b.jpg", "c.JPG", "c.jpg/d.png", "e.xml/f.jpg", "a_txt/b.png", "v1.2/g.jpg"]
    labels = [entry["label_name"] for entry in write_plan(tmp_path, map(picture, names))]
    assert labels == ["a", "a_txt/b", "c", "c_jpg/d", "e_xml/f", "a_txt/b_2", "v1.2/g"]


def test_no_folder_of_labels_is_called_images_and_no_name_breaks_a_line(tmp_path: Path) -> None:
    names = ["images/a.jpg", "images_/a.jpg", "x/images/b.jpg", "images.jpg", "new\nline\u2028.jpg"]
    labels = [entry["label_name"] for entry in write_plan(tmp_path, map(picture, names))]
    assert labels == ["images_/a", "images_/a_2", "x/images_/b", "images", "new_line_"]


def test_many_pictures_of_one_name_are_numbered_at_once(tmp_path: Path) -> None:
    listed = (Listed("p.parquet/image.jpg", {"shard": __file__, "row": row}) for row in range(5000))
    labels = [entry["label_name"] for entry in write_plan(tmp_path, listed)]
    assert labels[::4999] == ["p.parquet/image", "p.parquet/image_5000"] and len(set(labels)) == 5000
