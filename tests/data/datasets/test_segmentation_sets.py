"""The published lists of classes, and the metadata that registered sets have before a file is read."""

from grounding_dino.data.datasets import register_ade20k, register_cityscapes
from grounding_dino.data.datasets.coco_cleaning import CocoFormatError
from grounding_dino.data.datasets.register_ade20k import CLASSES as ADE20K
from grounding_dino.data.datasets.register_cityscapes import CLASSES as CITYSCAPES
from grounding_dino.data.datasets.register_coco_panoptic import CLASSES as COCO
from grounding_dino.data.datasets.segmentation_classes import SegmentationClass
from grounding_dino.data.datasets.segmentation_sets import register_instance_set
from grounding_dino.evaluation.build import evaluator_kinds

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

PANOPTIC = {
    "coco_2017_{}_panoptic_with_sem_seg": COCO,
    "ade20k_panoptic_{}": ADE20K,
    "cityscapes_fine_panoptic_{}": CITYSCAPES,
}
SEMANTIC = {"ade20k_sem_seg_{}": ADE20K, "cityscapes_fine_sem_seg_{}": CITYSCAPES}
INSTANCE = {
    "ade20k_instance_{}": ADE20K,
    "cityscapes_fine_instance_{}": CITYSCAPES,
    "cityscapes_fine_instance_seg_{}": CITYSCAPES,
}


def _each_split(sets):
    return [pytest.param(name.format(split), sets[name], id=name.format(split)) for name in sets for split in SPLITS]


SPLITS = ("train", "val")


@pytest.mark.parametrize(
    ("classes", "things", "stuff", "places"),
    [
        (COCO, 80, 53, {"person": 0, "toothbrush": 79, "banner": 80, "rug-merged": 132}),
        (ADE20K, 100, 50, {"wall": 0, "bed": 7, "person": 12, "crt screen": 141, "shower": 145, "flag": 149}),
        (CITYSCAPES, 8, 11, {"road": 0, "sky": 10, "person": 11, "bicycle": 18}),
    ],
    ids=["coco", "ade20k", "cityscapes"],
)
def test_lists_have_the_published_lengths_and_places(classes, things, stuff, places):
    assert sum(c.is_thing for c in classes) == things
    assert len(classes) == things + stuff
    assert len({c.name for c in classes}) == len({c.number for c in classes}) == len(classes)
    assert {name: [c.name for c in classes].index(name) for name in places} == places
    assert [c.number for c in classes] == sorted(c.number for c in classes)


def test_the_things_of_ade20k_are_those_of_its_instance_maps():
    """Places in the list of 150, from 1, of instance classes 1, 2, ...: as in the benchmark's table of both."""
    places = [c.number + 1 for c in ADE20K if c.is_thing]
    assert places[:12] == [8, 9, 11, 13, 15, 16, 19, 20, 21, 23, 24, 25]
    assert places[48:60] == [79, 81, 82, 83, 84, 86, 87, 88, 89, 90, 91, 93]
    assert places[-8:] == [140, 143, 144, 145, 147, 148, 149, 150]


@pytest.mark.parametrize(("name", "classes"), _each_split(PANOPTIC))
def test_panoptic_sets_number_things_and_stuff_in_one_list(name, classes):
    metadata = MetadataCatalog.get(name)
    assert metadata.stuff_classes == metadata.thing_classes == [c.name for c in classes]
    assert metadata.stuff_dataset_id_to_contiguous_id == {c.number: i for i, c in enumerate(classes)}
    assert metadata.thing_dataset_id_to_contiguous_id == {c.number: i for i, c in enumerate(classes) if c.is_thing}
    assert len(metadata.stuff_colors) == len(classes)
    assert metadata.ignore_label == 255
    assert metadata.evaluator_type == ["coco", "coco_panoptic_seg", "sem_seg"]
    for path in ("panoptic_json", "panoptic_root", "json_file", "sem_seg_root", "image_root"):
        assert getattr(metadata, path)


@pytest.mark.parametrize(("name", "classes"), _each_split(SEMANTIC))
def test_semantic_sets_have_all_classes(name, classes):
    metadata = MetadataCatalog.get(name)
    assert metadata.stuff_classes == [c.name for c in classes]
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")
    assert metadata.sem_seg_root


@pytest.mark.parametrize(("name", "classes"), _each_split(INSTANCE))
def test_instance_sets_count_things_from_0(name, classes):
    metadata = MetadataCatalog.get(name)
    things = [c for c in classes if c.is_thing]
    assert metadata.thing_classes == [c.name for c in things]
    assert metadata.thing_dataset_id_to_contiguous_id == {c.number: i for i, c in enumerate(things)}
    assert metadata.evaluator_type == "coco"


@pytest.mark.parametrize("split", SPLITS)
def test_detectron2s_panoptic_sets_keep_its_metadata(split):
    metadata = MetadataCatalog.get(f"coco_2017_{split}_panoptic")
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert len(metadata.stuff_dataset_id_to_contiguous_id) == 53
    classes = {**metadata.thing_dataset_id_to_contiguous_id, **metadata.stuff_dataset_id_to_contiguous_id}
    assert classes == {c.number: i for i, c in enumerate(COCO)}


@pytest.mark.parametrize("name", [name.format("val") for name in (*PANOPTIC, *SEMANTIC, *INSTANCE)])
def test_evaluators_are_known_and_absent_files_are_explained(name, data_root):
    assert evaluator_kinds(name)
    with pytest.raises(FileNotFoundError, match=r"there is no .*; download .* and run `python datasets/prepare_\w+.py"):
        DatasetCatalog.get(name)


@pytest.fixture
def registered_by_another():
    """`registered_by_another(name)`: a set that stands in the place of ours, which comes back afterwards."""
    kept = {}

    def register(name):
        kept[name] = (DatasetCatalog[name], MetadataCatalog.get(name))
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
        DatasetCatalog.register(name, lambda: "another's")
        MetadataCatalog.get(name).set(stuff_classes=["another's"])
        return name

    yield register
    for name, (load, metadata) in kept.items():
        DatasetCatalog[name], MetadataCatalog[name] = load, metadata


def test_sets_that_another_registered_are_kept(registered_by_another):
    name = registered_by_another("ade20k_sem_seg_val")
    register_ade20k()
    assert DatasetCatalog.get(name) == "another's"
    assert MetadataCatalog.get(name).stuff_classes == ["another's"]


def test_sets_of_cityscapes_that_another_registered_are_replaced(registered_by_another):
    name = registered_by_another("cityscapes_fine_panoptic_val")
    register_cityscapes()
    assert MetadataCatalog.get(name).stuff_classes == [c.name for c in CITYSCAPES]


BLACK = (0, 0, 0)
PETS = [SegmentationClass(i, name, i > 0, BLACK) for i, name in enumerate(("grass", "cat", "dog", "fox"))]


def test_classes_are_numbered_by_the_list_where_a_file_names_only_some(data_root, write_coco, new_name):
    content = write_coco("a.json", ["kitty", "hound"], [("1.jpg", "jpg/1.jpg", {}), ("2.jpg", "jpg/2.jpg", {})])
    register_instance_set(new_name, PETS, "make it", "jpg", "a.json")
    records = DatasetCatalog.get(new_name)
    assert [record["annotations"][0]["category_id"] for record in records] == [0, 1]
    metadata = MetadataCatalog.get(new_name)
    assert metadata.thing_classes == ["cat", "dog", "fox"]
    assert metadata.original_names == ["kitty", "hound", "fox"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2}
    assert metadata.json_file == str(data_root / "a.json")
    assert len(content["categories"]) == 2


def test_a_file_of_other_classes_is_refused(data_root, write_coco, new_name):
    write_coco("a.json", ["a", "b", "c", "d"], [("1.jpg", "jpg/1.jpg", {})])
    register_instance_set(new_name, PETS, "make it", "jpg", "a.json")
    with pytest.raises(CocoFormatError, match=r"a.json has the category 4 \('d'\), which is none of the 3 things"):
        DatasetCatalog.get(new_name)
