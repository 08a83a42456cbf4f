import json

from grounding_dino.config import add_grounding_dino_config
from grounding_dino.data.build import build_test_loader, load_records, load_train_records

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

NAMES = ("test_build_cats", "test_build_cells")


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_grounding_dino_config(cfg)
    extra = []
    for name, classes in zip(NAMES, (["cat", "dog"], ["cell"])):
        folder = tmp_path / name
        folder.mkdir()
        images, annotations = [], []
        for number in (1, 2):
            Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8)).save(folder / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 60, "height": 40})
        annotations = [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}]
        categories = [{"id": 3 + index, "name": label} for index, label in enumerate(classes)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "train.json").write_text(json.dumps(content))
        extra.append(f"{name}={folder / 'train.json'}:{folder}")
    cfg.DATASETS.EXTRA = extra
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = NAMES
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TEST = 40
    yield cfg
    for name in NAMES:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def test_data_sets_of_different_classes_train_together(cfg):
    records = load_train_records(cfg)
    assert [(record["dataset_name"], record["image_id"]) for record in records] == [(name, 1) for name in NAMES]


def test_the_test_loader_names_all_classes_of_its_data_set(cfg):
    for name, classes in zip(NAMES, (["cat", "dog"], ["cell"])):
        batches = list(build_test_loader(cfg, name))
        assert [batch[0]["categories"] for batch in batches] == [classes] * 2
        assert [batch[0]["image_id"] for batch in batches] == [1, 2]


def test_unknown_names_and_empty_data_sets_are_errors_at_the_start(cfg):
    with pytest.raises(ValueError, match="no data set 'cocoo'.*--dataset cocoo="):
        load_records(["cocoo"])
    with pytest.raises(ValueError, match="in a list"):
        load_records("shapes_val")
    load_train_records(cfg)
    path = DatasetCatalog[NAMES[0]].args[0]
    content = json.loads(open(path).read())
    content["annotations"] = []
    with open(path, "w") as file:
        json.dump(content, file)
    with pytest.raises(ValueError, match=NAMES[0]):
        load_train_records(cfg)


def _masked(cfg, tmp_path, masks):
    """The first set of `cfg` with an object a mask of `masks`, for training with masks."""
    file = tmp_path / NAMES[0] / "train.json"
    content = json.loads(file.read_text())
    (first,) = content["annotations"]
    content["annotations"] = [{**first, "id": 1 + n, **mask} for n, mask in enumerate(masks)]
    file.write_text(json.dumps(content))
    cfg.DATASETS.TRAIN = NAMES[:1]
    cfg.MODEL.MASK_ON, cfg.INPUT.MAPPER = True, "InstanceMapper"
    return cfg


MASK = {"segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}


def test_data_without_masks_do_not_train_a_model_with_masks(cfg, tmp_path):
    with pytest.raises(ValueError, match=f"none of the 2 objects of the data set '{NAMES[0]}' has a mask"):
        load_train_records(_masked(cfg, tmp_path, [{}, {}]))


@pytest.mark.parametrize("mapper, what", [("PanopticMapper", "panoptic maps"), ("SemanticMapper", "semantic maps")])
def test_data_that_a_mapper_cannot_learn_from_are_refused(cfg, mapper, what):
    cfg.DATASETS.TRAIN, cfg.INPUT.MAPPER = NAMES[:1], mapper
    with pytest.raises(ValueError, match=f"learns from {what}, which .* does not have; InstanceMapper goes with it"):
        load_train_records(cfg)


def test_objects_that_lack_a_mask_are_counted(cfg, tmp_path, caplog):
    assert len(load_train_records(_masked(cfg, tmp_path, [{}, MASK, MASK]))[0]["annotations"]) == 3
    assert f"{NAMES[0]}: 1 of 3 objects have no mask, and are not trained on" in caplog.text


@pytest.mark.parametrize("on_disk", [False, True])
def test_sentences_without_a_target_are_trained_on_or_named(
    cfg, on_disk, tmp_path, grounding_row, write_jsonl, caplog, monkeypatch
):
    monkeypatch.setenv("GROUNDING_DINO_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (32, 24)).save(tmp_path / "0.png")
    nothing = {"caption": "no such thing", "regions": []}
    path = write_jsonl("rows.jsonl", [grounding_row(0), grounding_row(0, grounding=nothing)])
    name = NAMES[0]
    cfg.DATASETS.EXTRA = [f"{name}={path[:-1] + '*' if on_disk else path}:{tmp_path}"]
    cfg.DATASETS.TRAIN = (name,)
    assert len(load_train_records(cfg)) == 1
    assert f"{name}: 1 sentences that name nothing" in caplog.text and "ANNOTATIONS False" in caplog.text
    caplog.clear()
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert len(load_train_records(cfg)) == 2 and not caplog.text
