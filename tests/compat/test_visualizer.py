"""The visualizer: what is drawn where, in which colour, and that labels can be read."""

from __future__ import annotations

import grounding_dino  # noqa: F401

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from detectron2.utils.colormap import colormap, random_color
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import ColorMode, GenericMask, VisImage, Visualizer

HEIGHT, WIDTH = 120, 200


@pytest.fixture
def picture():
    return np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)


@pytest.fixture
def metadata():
    name = "visualizer_test"
    return MetadataCatalog.get(name).set(
        thing_classes=["cat", "dog"],
        thing_colors=[(255, 0, 0), (0, 0, 255)],
        stuff_classes=["sky", "grass"],
        stuff_colors=[(0, 255, 255), (0, 255, 0)],
    )


def instances(boxes, classes, scores=None, masks=None):
    found = Instances((HEIGHT, WIDTH))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    if scores is not None:
        found.scores = torch.tensor(scores)
    if masks is not None:
        found.pred_masks = torch.as_tensor(masks)
    return found


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


# Colours


def test_palette_is_distinct_and_scaled():
    colors = colormap(rgb=True)
    assert colors.dtype == np.float32 and colors.shape[1] == 3
    assert len({tuple(color) for color in colors.tolist()}) == len(colors)
    assert np.allclose(colormap(rgb=True, maximum=1) * 255, colors)
    assert np.array_equal(colormap(), colors[:, ::-1])
    with pytest.raises(ValueError, match="255 or 1"):
        colormap(maximum=7)


def test_random_color_is_of_the_palette():
    color = random_color(rgb=True, maximum=1)
    assert any(np.array_equal(color, c) for c in colormap(rgb=True, maximum=1))


# Masks


def test_mask_forms_agree():
    mask = rectangle(20, 10, 60, 40)
    from_array = GenericMask(mask, HEIGHT, WIDTH)
    from_polygons = GenericMask([[20, 10, 60, 10, 60, 40, 20, 40]], HEIGHT, WIDTH)
    import pycocotools.mask as mask_util

    from_rle = GenericMask(mask_util.encode(np.asfortranarray(mask.astype(np.uint8))), HEIGHT, WIDTH)
    for generic in (from_array, from_polygons, from_rle):
        assert np.array_equal(generic.mask.astype(bool), mask)
        assert generic.area() == mask.sum()
        assert generic.bbox().tolist() == [20, 10, 60, 40]
        assert not generic.has_holes
    traced = GenericMask(from_array.polygons, HEIGHT, WIDTH).mask.astype(bool)
    assert (traced != mask).sum() <= 2 * (40 + 30)  # the outline runs through the centres of border pixels


def test_mask_with_a_hole_and_empty_mask():
    mask = rectangle(20, 10, 60, 40) & ~rectangle(30, 20, 40, 30)
    assert GenericMask(mask, HEIGHT, WIDTH).has_holes
    empty = GenericMask(np.zeros((HEIGHT, WIDTH)), HEIGHT, WIDTH)
    assert empty.polygons == [] and empty.area() == 0 and empty.bbox().tolist() == [0, 0, 0, 0]


def test_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        GenericMask(np.zeros((3, 4)), HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="str"):
        GenericMask("mask", HEIGHT, WIDTH)


# Instances


def test_a_category_has_its_colour(picture, metadata):
    found = instances([[50, 50, 90, 100], [120, 50, 160, 100]], [0, 1])
    drawn = Visualizer(picture, metadata).draw_instance_predictions(found).get_image()
    assert drawn.shape == picture.shape and drawn.dtype == np.uint8
    assert drawn[75, 50].tolist() == pytest.approx([255, 0, 0], abs=70)
    assert drawn[75, 120].tolist() == pytest.approx([0, 0, 255], abs=70)
    assert drawn[75, 70].tolist() == [128, 128, 128]  # boxes are not filled
    assert (picture == 128).all()


def test_colours_do_not_depend_on_the_other_detections(picture):
    plain = MetadataCatalog.get("visualizer_test_plain").set(thing_classes=["a", "b", "c"])
    alone = Visualizer(picture, plain).draw_instance_predictions(instances([[50, 50, 90, 100]], [2])).get_image()
    both = instances([[120, 50, 160, 100], [50, 50, 90, 100]], [0, 2])
    assert np.array_equal(
        Visualizer(picture, plain).draw_instance_predictions(both).get_image()[40:110, 45:95], alone[40:110, 45:95]
    )


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_output_is_scaled(picture, metadata, scale):
    output = Visualizer(picture, metadata, scale=scale).draw_instance_predictions(
        instances([[50, 50, 90, 100]], [0], [0.9])
    )
    assert output.get_image().shape == (HEIGHT * scale, WIDTH * scale, 3)
    assert (output.width, output.height) == (WIDTH, HEIGHT)
    assert np.abs(output.get_image()[int(75 * scale), int(50 * scale)].astype(int) - 128).max() > 40


def test_masks_cover_and_grey_mode(picture, metadata):
    picture[..., 0] = 200
    mask = rectangle(50, 50, 90, 100)
    found = instances([[50, 50, 90, 100]], [1], [0.5], mask[None])
    drawn = Visualizer(picture, metadata).draw_instance_predictions(found).get_image()
    assert drawn[90, 80].tolist() == pytest.approx([100, 64, 192], abs=2)
    grey = Visualizer(picture, metadata, instance_mode=ColorMode.IMAGE_BW).draw_instance_predictions(found).get_image()
    assert len(set(grey[5, 5].tolist())) == 1
    assert len(set(grey[90, 80].tolist())) > 1


def test_jitter_is_deterministic(picture, metadata):
    masks = np.stack([rectangle(10, 50, 50, 100), rectangle(60, 50, 100, 100)])
    found = instances([[10, 50, 50, 100], [60, 50, 100, 100]], [0, 0], None, masks)
    runs = [
        Visualizer(picture, metadata, instance_mode=ColorMode.SEGMENTATION).draw_instance_predictions(found).get_image()
        for _ in range(2)
    ]
    assert np.array_equal(*runs)
    assert runs[0][90, 40].tolist() != runs[0][90, 90].tolist()


def test_no_detections_leave_the_picture(picture, metadata):
    drawn = Visualizer(picture, metadata).draw_instance_predictions(instances([], [], [])).get_image()
    assert np.array_equal(drawn, picture)


def test_unequal_numbers_are_refused(picture):
    with pytest.raises(ValueError, match="equally many"):
        Visualizer(picture).overlay_instances(boxes=np.zeros((2, 4)), labels=["a"])


# Labels


@pytest.mark.parametrize("text", ["Katze ß é", "кошка", "猫", "🐈", "", "two\nlines"])
def test_any_text_can_be_drawn(picture, text):
    output = Visualizer(picture).overlay_instances(boxes=[[20, 40, 90, 100]], labels=[text])
    assert output.get_image().shape == picture.shape


def test_text_size_follows_the_picture():
    small, large = (Visualizer(np.zeros((n, n, 3), np.uint8))._fit("cat", None)[1].size for n in (200, 2000))
    assert large > 1.4 * small


# Single things


def test_primitives_draw(picture):
    for draw in (
        lambda v: v.draw_box([20, 20, 80, 80], edge_color="r", line_style="--"),
        lambda v: v.draw_line([5, 100], [5, 100], "#00ff00", linewidth=2),
        lambda v: v.draw_circle((50, 50), "b"),
        lambda v: v.draw_polygon([(10, 10), (60, 10), (30, 60)], (1.0, 0.0, 0.0), edge_color="k"),
        lambda v: v.draw_text("hello", (100, 50), color="w", horizontal_alignment="left"),
        lambda v: v.draw_soft_mask(np.full((HEIGHT, WIDTH), 0.5), "m", text="soft"),
        lambda v: v.draw_binary_mask(rectangle(5, 5, 50, 50), text="mask", edge_color="w"),
    ):
        output = draw(Visualizer(picture))
        assert isinstance(output, VisImage)
        assert (output.get_image() != 128).any()


def test_small_masks_are_left_out(picture):
    drawn = Visualizer(picture).draw_binary_mask(rectangle(5, 5, 7, 7), area_threshold=10).get_image()
    assert np.array_equal(drawn, picture)


def test_boxes_outside_the_picture_do_no_harm(picture):
    Visualizer(picture).overlay_instances(boxes=[[-50, -50, 500, 500], [300, 300, 400, 400]], labels=["a", "b"])


def test_bad_colours_and_alignments_are_refused(picture):
    with pytest.raises(ValueError, match="colour"):
        Visualizer(picture).draw_box([0, 0, 5, 5], edge_color=(255, 0, 0))
    with pytest.raises(ValueError, match="horizontal_alignment"):
        Visualizer(picture).draw_text("x", (0, 0), horizontal_alignment="middle")


def test_a_grey_picture_is_taken(metadata):
    drawn = Visualizer(np.zeros((50, 60), np.uint8), metadata).draw_box([5, 5, 30, 30]).get_image()
    assert drawn.shape == (50, 60, 3)


def test_save(picture, tmp_path):
    Visualizer(picture).get_output().save(str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").stat().st_size > 0


# Maps and records


def test_semantic_map(picture, metadata):
    ids = torch.full((HEIGHT, WIDTH), 255)
    ids[60:] = 1
    drawn = Visualizer(picture, metadata).draw_sem_seg(ids, alpha=0.5, draw_text=False).get_image()
    assert drawn[10, 10].tolist() == [128, 128, 128]
    assert drawn[100, 100].tolist() == pytest.approx([64, 192, 64], abs=2)


def test_panoptic_map(picture, metadata):
    ids = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    ids[60:, :] = 1
    ids[70:100, 20:60] = 2
    records = [
        {"id": 1, "category_id": 1, "isthing": False},
        {"id": 2, "category_id": 0, "isthing": True, "score": 0.9},
        {"id": 3, "category_id": 0, "isthing": True, "score": 0.9},
    ]
    drawn = Visualizer(picture, metadata).draw_panoptic_seg_predictions(ids, records, alpha=0.5).get_image()
    assert drawn[10, 10].tolist() == [128, 128, 128]
    assert drawn[115, 190].tolist() == pytest.approx([64, 192, 64], abs=2)
    assert drawn[95, 55].tolist() == pytest.approx([192, 64, 64], abs=2)


def test_dataset_record(picture, metadata):
    record = {
        "annotations": [
            {"bbox": [50, 50, 40, 50], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1},
            {"bbox": [120, 50, 160, 100], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1},
        ]
    }
    drawn = Visualizer(picture, metadata).draw_dataset_dict(record).get_image()
    assert drawn[75, 50].tolist() == pytest.approx([255, 0, 0], abs=70)
    assert drawn[75, 120].tolist() == pytest.approx([0, 0, 255], abs=70)


def test_masks_of_structures(picture):
    masks = BitMasks(torch.from_numpy(rectangle(10, 10, 60, 60)[None]))
    drawn = Visualizer(picture).overlay_instances(masks=masks, labels=["m"], assigned_colors=["r"]).get_image()
    assert drawn[50, 50].tolist() == pytest.approx([192, 64, 64], abs=2)


# Video


def test_an_object_keeps_its_colour_along_a_video(picture):
    metadata = MetadataCatalog.get("visualizer_test_video").set(thing_classes=["cat"])
    video = VideoVisualizer(metadata)
    first = video.draw_instance_predictions(picture, instances([[20, 40, 60, 100], [120, 40, 160, 100]], [0, 0]))
    moved = video.draw_instance_predictions(picture, instances([[122, 40, 162, 100], [23, 40, 63, 100]], [0, 0]))
    assert np.abs(first.get_image()[70, 20].astype(int) - moved.get_image()[70, 23]).max() < 40
    assert np.abs(first.get_image()[70, 120].astype(int) - moved.get_image()[70, 122]).max() < 40
    assert np.abs(first.get_image()[70, 20].astype(int) - first.get_image()[70, 120]).max() > 40


def test_video_with_masks_and_maps(picture, metadata):
    video = VideoVisualizer(metadata)
    masks = np.stack([rectangle(20, 40, 60, 100)])
    for _ in range(2):
        drawn = video.draw_instance_predictions(picture, instances([[20, 40, 60, 100]], [0], [0.9], masks)).get_image()
        assert (drawn[90, 50] != 128).any()
    ids = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    ids[60:] = 1
    records = [{"id": 1, "category_id": 0, "isthing": True}]
    assert (video.draw_panoptic_seg_predictions(picture, ids, records).get_image()[110, 100] != 128).any()
    assert (video.draw_sem_seg(picture, ids).get_image() != 128).any()


def test_a_lost_object_is_forgotten(picture):
    video = VideoVisualizer(MetadataCatalog.get("visualizer_test_video").set(thing_classes=["cat"]))
    for boxes in ([[20, 40, 60, 100]], [], [], [], []):
        video.draw_instance_predictions(picture, instances(boxes, [0] * len(boxes)))
    assert video._tracks == []
