import json

from grounding_dino.data.segmentation_maps import read_panoptic_map, read_semantic_map
from grounding_dino.data.shapes import painter, prepare
from grounding_dino.data.shapes.vocabulary import HELD_OUT_PAIRS, pair_name

import numpy as np
import pycocotools.mask as coco_mask
import pytest


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    output = tmp_path_factory.mktemp("shapes")
    prepare.main(_flags(output))
    return output


def _flags(output, train=3):
    counts = ["--num-train", str(train), "--num-val", "2", "--num-unseen", "2"]
    return ["--output", str(output), "--size", "96", "--workers", "1", "--quiet", *counts]


def _annotations(folder, name):
    return json.loads((folder / "annotations" / f"{name}.json").read_text())


def test_the_same_seed_gives_the_same_bytes_and_a_longer_split_starts_alike(shapes, tmp_path):
    prepare.main(_flags(tmp_path))
    for path in sorted(shapes.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / path.relative_to(shapes)).read_bytes(), path
    prepare.main(_flags(tmp_path, train=4))
    longer, shorter = _annotations(tmp_path, "train"), _annotations(shapes, "train")
    assert longer["annotations"][: len(shorter["annotations"])] == shorter["annotations"]
    assert len(longer["images"]) == 4


def test_boxes_areas_and_masks_agree(shapes):
    content = _annotations(shapes, "train")
    for annotation in content["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        assert mask.shape == (96, 96) and mask.sum() == annotation["area"]
        np.testing.assert_array_equal(coco_mask.toBbox(annotation["segmentation"]), annotation["bbox"])
    assert [category["id"] for category in content["categories"]] == list(range(1, 81))
    assert all((shapes / "train" / image["file_name"]).is_file() for image in content["images"])


def test_unseen_has_held_out_pairs_only(shapes):
    names = {category["name"] for category in _annotations(shapes, "unseen")["categories"]}
    assert names == {pair_name(pair) for pair in HELD_OUT_PAIRS}
    assert not names & {category["name"] for category in _annotations(shapes, "val")["categories"]}


def test_expressions_point_at_annotations(shapes):
    boxes = {annotation["id"]: annotation["bbox"] for annotation in _annotations(shapes, "val")["annotations"]}
    expressions = _annotations(shapes, "val_refexp")["expressions"]
    assert len(expressions) == 12
    assert all(boxes[expression["ann_id"]] == expression["bbox"] for expression in expressions)


def test_a_complete_split_is_not_drawn_again_and_a_broken_one_is(shapes, tmp_path):
    recipe = prepare.SplitRecipe("val", 1, 96, seed=0)
    assert prepare.prepare_split(recipe, tmp_path, progress=False)
    assert not prepare.prepare_split(recipe, tmp_path, progress=False)
    (tmp_path / "annotations" / "val_refexp.json").write_text("{")
    assert prepare.prepare_split(recipe, tmp_path, progress=False)


def test_segments_are_the_objects_and_one_of_three_backgrounds(shapes):
    kinds = set()
    for split in ("train", "val"):
        detection, panoptic = _annotations(shapes, split), _annotations(shapes, f"{split}_panoptic")
        assert [category["isthing"] for category in panoptic["categories"]] == [1] * 80 + [0] * 3
        place = {category["id"]: index for index, category in enumerate(panoptic["categories"])}
        assert [annotation["image_id"] for annotation in panoptic["annotations"]] == [1, 2, 3][
            : len(detection["images"])
        ]
        for annotation in panoptic["annotations"]:
            objects = [item for item in detection["annotations"] if item["image_id"] == annotation["image_id"]]
            *things, background = annotation["segments_info"]
            ids = read_panoptic_map(shapes / f"{split}_panoptic" / annotation["file_name"], range(1, len(things) + 2))
            classes = read_semantic_map(shapes / f"{split}_sem_seg" / annotation["file_name"])
            for segment, item in zip(things, objects, strict=True):
                mask = coco_mask.decode(item["segmentation"]).astype(bool)
                np.testing.assert_array_equal(ids == segment["id"], mask)
                assert {key: item[key] for key in ("bbox", "area", "category_id")}.items() <= segment.items()
            for segment in annotation["segments_info"]:
                assert (classes[ids == segment["id"]] == place[segment["category_id"]]).all()
                assert (ids == segment["id"]).sum() == segment["area"]
            assert background["bbox"] == [0, 0, 96, 96] and background["area"] > 96 * 96 / 3
            kinds.add(background["category_id"])
    assert kinds <= {101, 102, 103} and len(kinds) > 1


@pytest.mark.parametrize("number", range(6))
def test_the_background_is_named_as_it_is_painted(number):
    stream = prepare.SplitRecipe("train", 6, 96, seed=0).random_stream
    kind = painter.BACKGROUNDS[painter.draw_background(stream(number))[0]]
    canvas = painter.paint_background(96, stream(number))
    if kind == "plain":
        assert (canvas == canvas[0, 0]).all()
    else:
        # A ramp is a plane but for where it is cut off; blotches bend everywhere.
        bends = np.median(np.abs(np.diff(np.diff(canvas, axis=0), axis=1)))
        assert canvas.std() > 1 and (bends < 1e-3) == (kind == "graded")


def test_segments_are_added_to_a_folder_that_was_drawn_before(shapes, tmp_path):
    recipe = prepare.SplitRecipe("val", 2, 96, seed=0)
    prepare.prepare_split(recipe, tmp_path, progress=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert prepare.prepare_segments(recipe, tmp_path, progress=False)
    assert not prepare.prepare_segments(recipe, tmp_path, progress=False)
    assert {path: path.read_bytes() for path in before} == before
    added = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.*") if path not in before]
    assert len(added) == 5
    for path in added:
        assert (tmp_path / path).read_bytes() == (shapes / path).read_bytes(), path
    (tmp_path / "annotations" / "val_panoptic.json").write_text("{")
    assert prepare.prepare_segments(recipe, tmp_path, progress=False)


def test_bad_flags_are_refused_in_words(capsys, tmp_path):
    with pytest.raises(SystemExit):
        prepare.main([*_flags(tmp_path), "--size", "10"])
    assert "10 pixels is too small" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare.main([*_flags(tmp_path), "--num-train", "-1"])
    assert "cannot be negative" in capsys.readouterr().err


def test_output_follows_the_data_sets_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert prepare.default_output() == tmp_path / "shapes"
