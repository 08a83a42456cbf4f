import functools

from grounding_dino.data.prepare.maps import describe_segments, for_each, instance_of, write_semantic_map, write_whole
from grounding_dino.data.segmentation_maps import read_semantic_map

import numpy as np
import pycocotools.mask as coco_mask
import pytest


def test_segments_are_described_as_their_masks_are():
    ids = np.random.default_rng(0).choice([0, 3, 70000, 9], size=(7, 5), p=[0.5, 0.2, 0.2, 0.1])
    described = describe_segments(ids)
    assert list(described) == [3, 9, 70000]
    for number, facts in described.items():
        ys, xs = np.nonzero(ids == number)
        box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        assert facts == {"area": len(xs), "bbox": box}
        assert all(type(value) is int for value in (*facts["bbox"], facts["area"], number))


def test_a_map_without_segments_has_none():
    assert describe_segments(np.zeros((2, 3), dtype=np.int64)) == {}


def test_an_instance_has_its_mask_as_text():
    mask = np.eye(4, 6, dtype=bool)
    made = instance_of(mask, {"area": 4})
    assert made["area"] == 4
    assert made["segmentation"]["size"] == [4, 6] and isinstance(made["segmentation"]["counts"], str)
    assert np.array_equal(coco_mask.decode(made["segmentation"]), mask)


def test_maps_are_moved_when_whole(tmp_path):
    write_semantic_map(tmp_path / "new/a.png", np.full((2, 3), 255, dtype=np.uint8))
    assert read_semantic_map(tmp_path / "new/a.png").tolist() == [[255] * 3] * 2

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "new/b.png", fail)
    assert not (tmp_path / "new/b.png").exists()


def test_several_processes_keep_the_order():
    numbers = list(range(40))
    assert for_each(functools.partial(pow, 2), numbers, "powers", 2, True) == [2**n for n in numbers]


def test_one_process_is_this_one():
    assert for_each(lambda number: number + 1, [1, 2], "numbers", 1, True) == [2, 3]
