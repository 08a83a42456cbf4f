"""Settings of DATASETS.TEXT hold for one data set, and names are checked before anything is trained or evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from grounding_dino.data.datasets.groups import expand_groups
from grounding_dino.data.mappers import build_mapper
from grounding_dino.data.text_settings import check_all_names, settings_by_dataset
from grounding_dino.engine.trainer import check_test_sets
from grounding_dino.model_zoo import merge_options

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

Record = dict[str, Any]
NAMES = ["cat", "dog", "bird", "cup/mug", "horse", "traffic light"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(0)


@pytest.fixture
def mapper(tiny_cfg: CfgNode) -> Iterator[Callable[..., Any]]:
    """`mapper(settings of the data set "special", *opts, is_train=True)`, for it and for the data set "plain"."""
    for name in ("special", "plain"):
        MetadataCatalog.get(name).thing_classes = NAMES
    tiny_cfg.DATASETS.TRAIN, tiny_cfg.DATASETS.TEST = ("special", "plain"), ("special", "plain")
    tiny_cfg.INPUT.MIN_SIZE_TRAIN = (20,)

    def build(settings: dict[str, Any], *opts: Any, is_train: bool = True) -> Any:
        cfg = tiny_cfg.clone()
        merge_options(cfg, ["DATASETS.TEXT", str({"special": settings}), *opts])
        return build_mapper(cfg, is_train)

    yield build
    for name in ("special", "plain"):
        MetadataCatalog.pop(name, None)


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Record]:
    """`record(data set, categories of its objects)`; the objects stand on the left."""
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")

    def make(dataset: str, *categories: int, **change: Any) -> Record:
        annotations = [
            {"bbox": [1 + place, 1, 5, 5], "bbox_mode": BoxMode.XYWH_ABS, "category_id": category, "iscrowd": 0}
            for place, category in enumerate(categories)
        ]
        facts = {"file_name": str(tmp_path / "a.png"), "height": 20, "width": 30, "dataset_name": dataset}
        return {**facts, "annotations": annotations, **change}

    return make


def summary(made: Any, record: Record, count: int = 40) -> dict[str, Any]:
    samples = [made(record) for _ in range(count)]
    return {
        "counts": {len(sample["categories"]) for sample in samples},
        "orders": len({tuple(sample["categories"]) for sample in samples}),
        "lefts": {sample["instances"].gt_boxes.tensor[0, 0].item() for sample in samples},
        "names": {name for sample in samples for name in sample["categories"]},
    }


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"NUM_NEGATIVE_CATEGORIES": 0}, {"counts": {1}}),
        ({"NUM_NEGATIVE_CATEGORIES": 4, "FULL_NEGATIVES_PROBABILITY": 1}, {"counts": {5}}),
        ({"NUM_NEGATIVE_CATEGORIES": 2, "FULL_NEGATIVES_PROBABILITY": 0.0}, {"counts": {2, 3}}),
        ({"SHUFFLE_CATEGORIES_ON": False}, {"orders": 1}),
        ({"RANDOM_FLIP": "none"}, {"lefts": {1.0}}),
        ({"SPLIT_NAMES_ON": True}, {"names": {*NAMES, "cup", "mug"} - {"cup/mug"}}),
    ],
)
def test_each_setting_holds_for_its_data_set_alone(
    mapper: Callable[..., Any], record: Callable[..., Record], settings: dict[str, Any], facts: dict[str, Any]
) -> None:
    made = mapper(settings, "INPUT.RANDOM_FLIP", "horizontal")
    special, plain = summary(made, record("special", 0)), summary(made, record("plain", 0))
    assert {key: special[key] for key in facts} == facts
    assert plain["counts"] == {6} and plain["orders"] > 10
    assert plain["lefts"] == {1.0, 24.0} and plain["names"] == set(NAMES)
    untouched = (
        special.keys() - facts.keys() - ({"orders", "names"} if "NUM_NEGATIVE_CATEGORIES" in settings else set())
    )
    assert all(special[key] == plain[key] for key in untouched - {"orders"})


def test_a_group_passes_its_settings_to_its_members(tiny_cfg: CfgNode) -> None:
    member = "odinw_packages_val"
    assert member in expand_groups(["odinw13"])
    texts = {member: {"RANDOM_FLIP": "vertical"}, "odinw13": {"RANDOM_FLIP": "none"}}
    merge_options(tiny_cfg, ["DATASETS.TEXT", str(texts)])
    settings = settings_by_dataset(tiny_cfg)
    assert set(settings) == set(expand_groups(["odinw13"]))
    assert {name: found.flip for name, found in settings.items() if found.flip != "none"} == {member: "vertical"}


def test_the_number_of_labels_is_known_with_each_data_sets_settings(
    mapper: Callable[..., Any], record: Callable[..., Record]
) -> None:
    made = mapper({"NUM_NEGATIVE_CATEGORIES": 1})
    assert made.most_labels(record("special", 0, 1)) == 3
    assert made.most_labels(record("plain", 0, 1)) == 6
    assert made.most_labels(record("special", 0, caption="a cat", phrases=[[2, 5]])) == 1


def test_split_names_are_counted_by_their_shortest_part(
    mapper: Callable[..., Any], record: Callable[..., Record]
) -> None:
    """ "cup/mug" has three tokens and a period, its parts one and a period."""
    names = ["cup/mug"] * 4
    made = mapper({"SPLIT_NAMES_ON": True}, "MODEL.TEXT_ENCODER.MAX_TOKENS", 2 + 8)
    assert made.most_labels(record("special", 0, categories=names)) == 4
    assert made.most_labels(record("plain", 0, categories=names)) == 2


def test_no_part_of_a_present_name_is_a_negative(mapper: Callable[..., Any], record: Callable[..., Record]) -> None:
    made = mapper({"SPLIT_NAMES_ON": True})
    names = ["cup/mug", "mug", "Cup", "mug / glass", "plate"]
    asked = [made(record("special", 0, categories=names))["categories"] for _ in range(20)]
    assert {frozenset(words) for words in asked} == {frozenset({"cup", "plate"}), frozenset({"mug", "plate"})}
    objects = [made(record("special", 1, categories=names))["categories"] for _ in range(20)]
    assert {frozenset(words) for words in objects} == {frozenset({"mug", "Cup", "plate"})}


def test_names_that_are_written_alike_are_one_class(
    mapper: Callable[..., Any], record: Callable[..., Record], tmp_path: Path
) -> None:
    (tmp_path / "names.json").write_text(json.dumps({"cat": "pet", "dog": "Pet"}))
    made = mapper({"NAMES_FILE": str(tmp_path / "names.json"), "NUM_NEGATIVE_CATEGORIES": 0})
    sample = made(record("special", 1, 0, 2))
    assert sorted(sample["categories"]) == ["bird", "pet"]
    assert [sample["categories"][index] for index in sample["instances"].gt_classes] == ["pet", "pet", "bird"]


@pytest.mark.parametrize("is_train", [True, False])
def test_a_names_file_says_what_prompts_write(
    mapper: Callable[..., Any], record: Callable[..., Record], tmp_path: Path, is_train: bool
) -> None:
    (tmp_path / "names.json").write_text(json.dumps({"bird": "flying animal"}))
    made = mapper({"NAMES_FILE": str(tmp_path / "names.json")}, is_train=is_train)
    expected = ["flying animal" if name == "bird" else name for name in NAMES]
    assert sorted(made(record("special", 2))["categories"]) == sorted(expected)
    assert sorted(made(record("plain", 2))["categories"]) == sorted(NAMES)
    own = made(record("special", 0, categories=["bird", "fish"]))["categories"]
    assert sorted(own) == ["fish", "flying animal"]
    said = made(record("special", 0, categories=["bird"], referring=True, expression_ids=[1]))["categories"]
    assert said == ["bird"], "an expression is no category"
    if not is_train:
        assert made(record("special"))["categories"] == expected


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"fish": "sea animal"}, "is about 'fish', but the data set has none of them; its categories are 'cat', 'dog'"),
        (["cat"], r'holds a list; write \{"category name"'),
        ({"cat": 3}, "gives 'cat' no name that is text, but 3"),
        ({"cat": " "}, "gives 'cat' no name that is text"),
        ("{", "not readable as JSON"),
        ({"cat": "."}, "the name '.' of the data set 'special' contains no word"),
    ],
)
def test_a_names_file_of_another_kind_is_refused(
    mapper: Callable[..., Any], tmp_path: Path, content: Any, sentence: str
) -> None:
    path = tmp_path / "names.json"
    path.write_text(content if content == "{" else json.dumps(content))
    with pytest.raises(ValueError, match=sentence):
        mapper({"NAMES_FILE": str(path)})


def test_a_names_file_that_is_not_there(mapper: Callable[..., Any]) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file 'nowhere.json', which NAMES_FILE"):
        mapper({"NAMES_FILE": "nowhere.json"})


def test_names_that_a_data_set_lacks_are_mentioned(
    mapper: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "names.json").write_text(json.dumps({"cat": "pet", "fish": "sea animal"}))
    mapper({"NAMES_FILE": str(tmp_path / "names.json")})
    assert "the names file of 'special' names 'fish', which the data set does not have" in caplog.text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            {"speciall": {}},
            "settings for 'speciall', which is no data set; those of this configuration are special, plain",
        ),
        (
            {"plain": {"NEGATIVES": 3}},
            "unknown key 'NEGATIVES' in DATASETS.TEXT of 'plain'; the known ones are NUM_NEG",
        ),
        ({"plain": {"NUM_NEGATIVE_CATEGORIES": 0.5}}, "NUM_NEGATIVE_CATEGORIES .* is 0.5; it takes a value of int"),
        ({"plain": {"SHUFFLE_CATEGORIES_ON": 1}}, "it takes a value of bool"),
        ({"plain": {"FULL_NEGATIVES_PROBABILITY": 2.0}}, "DATASETS.TEXT of 'plain': the probability .* is 2.0"),
        ({"plain": {"RANDOM_FLIP": "up"}}, "unknown RANDOM_FLIP 'up'"),
        ({"plain": 3}, "DATASETS.TEXT of 'plain' is 3; give it keys and values"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    mapper: Callable[..., Any], tiny_cfg: CfgNode, text: dict[str, Any], sentence: str
) -> None:
    merge_options(tiny_cfg, ["DATASETS.TEXT", str(text)])
    with pytest.raises(ValueError, match=sentence):
        build_mapper(tiny_cfg, is_train=True)


@pytest.mark.parametrize("is_train", [True, False])
def test_names_longer_than_a_prompt_are_met_at_the_start(mapper: Callable[..., Any], is_train: bool) -> None:
    sentence = "the name 'cup/mug' of the data set 'special' has 3 tokens.*MODEL.TEXT_ENCODER.MAX_TOKENS is 5"
    with pytest.raises(ValueError, match=sentence):
        mapper({}, "MODEL.TEXT_ENCODER.MAX_TOKENS", 5, is_train=is_train)
    mapper({}, "MODEL.TEXT_ENCODER.MAX_TOKENS", 6, is_train=is_train)


def test_categories_of_records_are_checked_too(tiny_cfg: CfgNode, record: Callable[..., Record]) -> None:
    records = [record("special", 0, categories=["the cat"]), record("special", 0, categories=["the very small cat"])]
    check_all_names(tiny_cfg, records, "special")
    tiny_cfg.MODEL.TEXT_ENCODER.MAX_TOKENS = 6
    with pytest.raises(
        ValueError, match=r"the name 'the very small cat' of .*a.png \(data set 'special'\) has 4 tokens"
    ):
        check_all_names(tiny_cfg, records, "special")


def test_a_test_set_with_a_name_too_long_ends_a_training_at_its_start(
    tiny_cfg: CfgNode, record: Callable[..., Record], request: pytest.FixtureRequest
) -> None:
    DatasetCatalog.register("long_names", lambda: [record("long_names", 0)])
    MetadataCatalog.get("long_names").set(thing_classes=["the very small cat"], evaluator_type="coco")
    request.addfinalizer(lambda: (DatasetCatalog.remove("long_names"), MetadataCatalog.remove("long_names")))
    tiny_cfg.DATASETS.TEST = ("long_names",)
    check_test_sets(tiny_cfg)
    tiny_cfg.MODEL.TEXT_ENCODER.MAX_TOKENS = 6
    sentence = "'long_names' of DATASETS.TEST cannot be evaluated on: the name 'the very small cat' of the data set"
    with pytest.raises(ValueError, match=sentence):
        check_test_sets(tiny_cfg)
