import copy

from grounding_dino.data.loader import build_train_loader
from grounding_dino.data.mappers import PanopticMapper, SemanticMapper, build_mapper
from grounding_dino.data.mappers.segments import LabelRange
from grounding_dino.data.segmentation_maps import write_panoptic_map

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image

HEIGHT, WIDTH = 20, 30
IDS = (300, 70000, 5)  # of two objects and a crowd; the second is stuff


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)


@pytest.fixture
def ids():
    numbers = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    numbers[:10] = IDS[1]
    numbers[2:6, 4:12] = IDS[0]
    numbers[15:, 20:] = IDS[2]
    return numbers


@pytest.fixture
def panoptic(tmp_path, ids):
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)).save(tmp_path / "a.png")
    write_panoptic_map(tmp_path / "a_panoptic.png", ids)
    segments = [
        {"id": number, "category_id": category, "isthing": category < 80, "iscrowd": int(number == IDS[2])}
        for number, category in zip(IDS, (7, 81, 3))
    ]
    paths = {"file_name": str(tmp_path / "a.png"), "pan_seg_file_name": str(tmp_path / "a_panoptic.png")}
    return {**paths, "image_id": 4, "segments_info": segments}


@pytest.fixture
def semantic(tmp_path, panoptic):
    labels = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    labels[:10], labels[10:, :15] = 2, 0
    labels[2:6, 4:12] = 0
    Image.fromarray(labels).save(tmp_path / "a_sem_seg.png")
    return {"file_name": panoptic["file_name"], "image_id": 4, "sem_seg_file_name": str(tmp_path / "a_sem_seg.png")}


def _panoptic_mapper(*augmentations, is_train=True):
    return PanopticMapper(is_train=is_train, augmentations=augmentations)


def _semantic_mapper(*augmentations, is_train=True, classes=3):
    labels = {"set": LabelRange(classes, 255)}
    return SemanticMapper(is_train=is_train, augmentations=augmentations, labels=labels)


class Crop(T.Augmentation):
    def get_transform(self, image):
        return T.CropTransform(0, 0, WIDTH, 4, WIDTH, HEIGHT)


MOVES = (T.RandomFlip(prob=1.0), T.Resize((2 * HEIGHT, 2 * WIDTH)))


def _moved(mask):
    return mask[:, ::-1].repeat(2, axis=0).repeat(2, axis=1)


def test_each_segment_but_crowds_is_an_instance(panoptic, ids):
    before = copy.deepcopy(panoptic)
    sample = _panoptic_mapper(*MOVES)(panoptic)
    assert panoptic == before
    assert sorted(sample) == ["file_name", "height", "image", "image_id", "instances", "width"]
    instances = sample["instances"]
    assert instances.gt_classes.tolist() == [7, 81]
    for mask, number in zip(instances.gt_masks.tensor, IDS):
        np.testing.assert_array_equal(mask.numpy(), _moved(ids == number))
    assert instances.gt_boxes.tensor.tolist() == [[36, 4, 52, 12], [0, 0, 60, 20]]


def test_segments_that_a_crop_cuts_off_are_left_out(panoptic):
    panoptic["segments_info"][2]["iscrowd"] = 0
    instances = _panoptic_mapper(Crop())(panoptic)["instances"]
    assert instances.gt_classes.tolist() == [7, 81] and instances.gt_masks.tensor.shape == (2, 4, WIDTH)


def test_padding_belongs_to_no_segment(panoptic, tiny_cfg):
    jitter = "INPUT.LARGE_SCALE_JITTER."
    options = [jitter + "ENABLED_ON", True, jitter + "SIZE", 64, jitter + "MIN_SCALE", 0.5, jitter + "MAX_SCALE", 0.5]
    tiny_cfg.merge_from_list(["INPUT.MAPPER", "PanopticMapper", *options])
    sample = build_mapper(tiny_cfg, is_train=True)(panoptic)
    masks = sample["instances"].gt_masks.tensor
    assert masks.shape == (2, 64, 64) and not masks[:, 22:].any() and not masks[:, :, 32:].any()


@pytest.mark.parametrize("kept", [0, 2])
def test_a_picture_without_segments_or_with_crowds_alone_has_no_instances(tmp_path, panoptic, ids, kept):
    write_panoptic_map(tmp_path / "a_panoptic.png", np.where(ids == IDS[2], ids, 0) if kept else 0 * ids)
    panoptic["segments_info"] = panoptic["segments_info"][2:] if kept else []
    instances = _panoptic_mapper()(panoptic)["instances"]
    assert len(instances) == 0 and instances.gt_masks.tensor.shape == (0, HEIGHT, WIDTH)
    assert instances.gt_boxes.tensor.shape == (0, 4)


def test_more_segments_than_a_byte_counts_keep_their_pixels(tmp_path, panoptic):
    ids = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) + 1
    write_panoptic_map(tmp_path / "a_panoptic.png", ids)
    panoptic["segments_info"] = [{"id": int(n), "category_id": int(n) % 7} for n in ids.ravel()]
    instances = _panoptic_mapper(*MOVES)(panoptic)["instances"]
    assert len(instances) == ids.size
    for place in (0, 254, 255, 256, 599):
        np.testing.assert_array_equal(instances.gt_masks.tensor[place].numpy(), _moved(ids == place + 1))


@pytest.mark.parametrize("height", [7, 13, 33])
def test_many_segments_are_resized_as_few_are(panoptic, ids, height):
    """Beyond 255 labels are no bytes, which Detectron2 would resize beside their picture."""
    resize = (T.ResizeTransform(HEIGHT, WIDTH, height, 21), T.HFlipTransform(21))
    few = _panoptic_mapper(*resize)(panoptic)["instances"].gt_masks.tensor
    corner = np.arange(15 * 18).reshape(15, 18)[::-1] + 1000  # far more segments in the place of no object's
    many = np.where(ids == 0, 1, ids)
    many[:15, 12:] = corner
    write_panoptic_map(panoptic["pan_seg_file_name"], many)
    infos = [{"id": int(n), "category_id": 81, "isthing": False} for n in np.unique(many) if n not in IDS]
    found = _panoptic_mapper(*resize)({**panoptic, "segments_info": [*panoptic["segments_info"], *infos]})
    np.testing.assert_array_equal(found["instances"].gt_masks.tensor[0], few[0])


def test_ids_that_do_not_match_are_an_error_that_names_the_file_and_the_id(panoptic):
    lacking = {**panoptic, "segments_info": panoptic["segments_info"][1:]}
    with pytest.raises(ValueError, match=r"a_panoptic.png' has pixels of the segment 300"):
        _panoptic_mapper()(lacking)
    more = {**panoptic, "segments_info": [*panoptic["segments_info"], {"id": 12, "category_id": 1}]}
    with pytest.raises(ValueError, match=r"lists the segment 12, of which .*a_panoptic.png' has no pixel"):
        _panoptic_mapper()(more)


def test_a_map_of_another_size_is_an_error(tmp_path, panoptic, semantic):
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 1, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    for mapper, record in ((_panoptic_mapper(), panoptic), (_semantic_mapper(), semantic)):
        with pytest.raises(ValueError, match=r"is 20 x 30 \(h x w\), but the picture that it labels 20 x 31"):
            mapper(record)


@pytest.mark.parametrize("kind", ["panoptic", "semantic"])
def test_an_unreadable_map_is_named_and_left_out_of_training(panoptic, semantic, caplog, kind):
    mapper, record, key = {
        "panoptic": (_panoptic_mapper(), panoptic, "pan_seg_file_name"),
        "semantic": (_semantic_mapper(), semantic, "sem_seg_file_name"),
    }[kind]
    with open(record[key], "r+b") as file:
        file.truncate(60)
    assert mapper(record) is None
    assert mapper.reader.num_unreadable == 1 and record[key] in caplog.text


def test_testing_hands_on_what_evaluators_need(panoptic, semantic):
    sample = _panoptic_mapper(T.Resize((10, 15)), is_train=False)({**panoptic, **semantic})
    assert {key: sample[key] for key in panoptic} == panoptic
    assert sample["sem_seg_file_name"] == semantic["sem_seg_file_name"] and "instances" not in sample
    assert (sample["height"], sample["width"]) == (HEIGHT, WIDTH) and sample["image"].shape == (3, 10, 15)
    sample = _semantic_mapper(is_train=False)(semantic)
    assert {key: sample[key] for key in semantic} == semantic and "instances" not in sample


def test_in_testing_an_unreadable_picture_is_black_and_of_the_size_of_its_map(panoptic, semantic):
    with open(panoptic["file_name"], "wb") as file:
        file.write(b"broken")
    for mapper, record in ((_panoptic_mapper, panoptic), (_semantic_mapper, semantic)):
        sample = mapper(is_train=False)(record)
        assert (sample["height"], sample["width"]) == (HEIGHT, WIDTH)
        assert sample["image"].shape == (3, HEIGHT, WIDTH) and not sample["image"].any()


def test_each_class_present_is_an_instance_and_ignored_pixels_are_of_none(semantic):
    sample = _semantic_mapper(*MOVES)({**semantic, "dataset_name": "set"})
    labels = np.asarray(Image.open(semantic["sem_seg_file_name"]))
    instances = sample["instances"]
    assert instances.gt_classes.tolist() == [0, 2]
    for mask, label in zip(instances.gt_masks.tensor, (0, 2)):
        np.testing.assert_array_equal(mask.numpy(), _moved(labels == label))
    assert instances.gt_boxes.tensor.tolist() == [[30, 4, 60, 40], [0, 0, 60, 20]]


def test_a_picture_that_is_ignored_everywhere_has_no_instances(semantic):
    Image.fromarray(np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)).save(semantic["sem_seg_file_name"])
    instances = _semantic_mapper()(semantic)["instances"]
    assert len(instances) == 0 and instances.gt_masks.tensor.shape == (0, HEIGHT, WIDTH)


def test_a_class_beyond_those_of_the_data_set_is_an_error(semantic):
    with pytest.raises(
        ValueError, match=r"a_sem_seg.png has the class 2, but the data set 'set' has the classes 0 to 1"
    ):
        _semantic_mapper(classes=2)({**semantic, "dataset_name": "set"})


def test_maps_of_more_classes_than_a_byte_counts(tmp_path, semantic):
    labels = np.full((HEIGHT, WIDTH), 900, dtype=np.uint16)
    labels[:, :10] = 65535
    Image.fromarray(labels).save(semantic["sem_seg_file_name"])
    mapper = SemanticMapper(is_train=True, augmentations=MOVES, labels={"set": LabelRange(1000, 65535)})
    instances = mapper({**semantic, "dataset_name": "set"})["instances"]
    assert instances.gt_classes.tolist() == [900]
    np.testing.assert_array_equal(instances.gt_masks.tensor[0].numpy(), _moved(labels == 900))


@pytest.fixture
def registered(semantic, panoptic):
    names = {"maps": "sem_seg_of_test", "panoptic": "panoptic_of_test"}
    DatasetCatalog.register(names["maps"], lambda: [semantic])
    MetadataCatalog.get(names["maps"]).set(stuff_classes=["a", "b", "c"], ignore_label=2)
    DatasetCatalog.register(names["panoptic"], lambda: [panoptic])
    yield names
    for name in names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize(("kind", "mapper"), [("maps", "SemanticMapper"), ("panoptic", "PanopticMapper")])
def test_sets_of_maps_are_trained_on(registered, semantic, tiny_cfg, kind, mapper):
    Image.fromarray(np.array([[0, 1], [2, 2]], dtype=np.uint8).repeat(10, 0).repeat(15, 1)).save(
        semantic["sem_seg_file_name"]
    )
    options = ["DATASETS.TRAIN", (registered[kind],), "INPUT.MAPPER", mapper, "INPUT.RANDOM_FLIP", "none"]
    tiny_cfg.merge_from_list([*options, "SOLVER.IMS_PER_BATCH", 1, "DATALOADER.NUM_WORKERS", 0])
    (sample,) = next(iter(build_train_loader(tiny_cfg, seed=0)))
    # The metadata say that 2 is the ignored label.
    assert sample["instances"].gt_classes.tolist() == ([0, 1] if kind == "maps" else [7, 81])


def test_a_config_sets_crop_colours_and_padding_of_label_maps(registered, semantic, tiny_cfg):
    options = [
        "DATASETS.TRAIN",
        (registered["maps"],),
        "INPUT.MAPPER",
        "SemanticMapper",
        "INPUT.COLOR_AUG_SSD_ON",
        True,
    ]
    options += ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [12, 12]]
    options += ["INPUT.SIZE_DIVISIBILITY", 16, "INPUT.MIN_SIZE_TRAIN", (20,)]
    tiny_cfg.merge_from_list(options)
    Image.fromarray(np.zeros((HEIGHT, WIDTH), dtype=np.uint8)).save(semantic["sem_seg_file_name"])
    mapper = build_mapper(tiny_cfg, is_train=True)
    colours = set()
    for _ in range(8):
        sample = mapper({**semantic, "dataset_name": registered["maps"]})
        (mask,) = sample["instances"].gt_masks.tensor
        assert mask.shape == (16, 16) and mask[:12, :12].all() and int(mask.sum()) == 144
        assert (sample["image"][:, 12:] == 128).all()
        colours.add(tuple(sample["image"][:, 0, 0].tolist()))
    assert len(colours) > 4


def test_training_sets_that_ignore_different_labels_are_refused(registered, tiny_cfg):
    tiny_cfg.merge_from_list(["DATASETS.TRAIN", (registered["maps"], registered["panoptic"])])
    with pytest.raises(ValueError, match=r"ignore different labels \(\[2, 255\]\)"):
        SemanticMapper(tiny_cfg, is_train=True)
