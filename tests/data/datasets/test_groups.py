from grounding_dino.cli.train import build_parser, load_config
from grounding_dino.data.build import load_records
from grounding_dino.data.datasets.groups import dataset_groups, expand_config, expand_groups, unknown_name
from grounding_dino.model_zoo import get_cfg

import pytest


def test_groups_become_their_members_and_other_names_stay():
    members = list(dataset_groups()["odinw13"])
    assert expand_groups(["coco_2017_val", "odinw13", "mine"]) == ["coco_2017_val", *members, "mine"]
    assert len(members) == 13


def test_the_command_line_expands_groups_wherever_data_sets_are_named():
    options = ["DATASETS.TRAIN", "('odinw13_train_3shot',)", "DATASETS.TEST", "('odinw13',)"]
    cfg = load_config(build_parser().parse_args([*options, "TEST.RETAINED", "('shapes_val', 'odinw35')"]))
    assert cfg.DATASETS.TRAIN == dataset_groups()["odinw13_train_3shot"]
    assert cfg.DATASETS.TEST == dataset_groups()["odinw13"]
    assert cfg.TEST.RETAINED == ("shapes_val", *dataset_groups()["odinw35"])


def test_members_share_the_weight_of_their_group():
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.WEIGHTS = ("shapes_train", "odinw13_train"), [3.0, 1.3]
    expand_config(cfg)
    assert cfg.DATASETS.WEIGHTS == pytest.approx([3.0] + [0.1] * 13)
    assert len(cfg.DATASETS.WEIGHTS) == len(cfg.DATASETS.TRAIN)


def test_members_are_gone_through_as_often_as_their_group_says():
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.RATIOS = ("shapes_train", "odinw13_train"), [0.5, 2]
    expand_config(cfg)
    assert cfg.DATASETS.RATIOS == [0.5] + [2] * 13


def test_weights_that_are_no_numbers_stay_to_be_refused():
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.WEIGHTS = ("odinw13_train",), ["much"]
    expand_config(cfg)
    assert cfg.DATASETS.WEIGHTS == ["much"]


def test_an_unknown_name_is_answered_by_similar_ones():
    with pytest.raises(ValueError, match="there is no data set 'coco_2017_vall'; did you mean coco_2017_val"):
        load_records(["coco_2017_vall"])
    assert "datasets/README.md lists" in unknown_name("zebra")
    assert "--dataset zebra=annotations:image_folder" in unknown_name("zebra")
