import copy

from grounding_dino.config import add_grounding_dino_config
from grounding_dino.data.mappers import MAPPER_REGISTRY, TextDetectionMapper, build_mapper
from grounding_dino.data.text_sampling import TextSampler
from grounding_dino.text.prompt_builder import PromptBuilder

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

CLASSES = ["cat", "dog", "bird"]


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)


@pytest.fixture
def picture(tmp_path):
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :30, 0] = 255  # red on the left
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    return str(path)


def _annotation(category, box, **extra):
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category, "iscrowd": 0, **extra}


def _record(picture, **change):
    annotations = [_annotation(2, [0, 0, 30, 20]), _annotation(0, [40, 10, 10, 20])]
    return {"file_name": picture, "image_id": 5, "height": 40, "width": 60, "annotations": annotations, **change}


def _mapper(*augmentations, is_train=True, **options):
    options.setdefault("sampler", TextSampler() if is_train else None)
    return TextDetectionMapper(
        is_train=is_train, augmentations=augmentations, class_names={"set": CLASSES}, default_dataset="set", **options
    )


FLIP = T.RandomFlip(prob=1.0)


def test_classes_index_the_drawn_prompt(picture):
    mapper = _mapper()
    for _ in range(10):
        sample = mapper(_record(picture))
        assert sorted(sample["categories"]) == sorted(CLASSES)
        instances = sample["instances"]
        assert [sample["categories"][index] for index in instances.gt_classes] == ["bird", "cat"]
        assert instances.gt_boxes.tensor.tolist() == [[0, 0, 30, 20], [40, 10, 50, 30]]
        assert instances.gt_classes.dtype == torch.int64
    assert sample["image"].shape == (3, 40, 60) and sample["image"].dtype == torch.uint8
    assert sample["image"][:, 0, 0].tolist() == [255, 0, 0]
    assert (sample["height"], sample["width"], sample["image_id"]) == (40, 60, 5)


def test_the_record_is_not_changed(picture):
    record = _record(picture)
    before = copy.deepcopy(record)
    _mapper(FLIP, T.Resize((80, 120)))(record)
    assert record == before


def test_boxes_follow_the_picture_and_class_names_do_not(picture):
    sample = _mapper(T.Resize((80, 120)), FLIP)(_record(picture, categories=["left hand", "right hand", "foot"]))
    assert sample["image"].shape == (3, 80, 120)
    assert sample["image"][0, 0, -1] == 255
    assert sample["instances"].gt_boxes.tensor.tolist() == [[60, 0, 120, 40], [20, 20, 40, 60]]
    assert [sample["categories"][index] for index in sample["instances"].gt_classes] == ["foot", "left hand"]


def test_objects_that_vanish_and_crowds_are_left_out_and_no_longer_positive(picture):
    class LeftHalf(T.Augmentation):
        def get_transform(self, image):
            return T.CropTransform(0, 0, 30, 40)

    sampler = TextSampler(num_negatives=0)
    record = _record(picture)
    record["annotations"].append(_annotation(1, [0, 0, 5, 5], iscrowd=1))
    sample = _mapper(LeftHalf(), sampler=sampler)(record)
    assert sample["categories"] == ["bird"]
    assert sample["instances"].gt_boxes.tensor.tolist() == [[0, 0, 30, 20]]


def test_a_picture_without_objects_is_a_sample(picture):
    sample = _mapper()(_record(picture, annotations=[]))
    assert len(sample["instances"]) == 0 and sample["instances"].gt_boxes.tensor.shape == (0, 4)
    assert len(sample["categories"]) == 3


def test_objects_whose_name_does_not_fit_go_with_it(picture):
    sample = _mapper(sampler=TextSampler(prompts=PromptBuilder(max_tokens=4)))(_record(picture))
    assert len(sample["categories"]) == 1 and len(sample["instances"]) == 1
    assert sample["instances"].gt_classes.tolist() == [0]


def test_referring_expressions_are_drawn_one_an_object_and_mirrored(picture):
    record = _record(
        picture,
        categories=["the left one", "the red one", "the leftmost", "the thin one"],
        referring=True,
        annotations=[_annotation(i, box) for i, box in enumerate([[0, 0, 30, 20]] * 3 + [[40, 10, 10, 20]])],
        expression_ids=[1, 2, 3, 4],
    )
    seen = set()
    for _ in range(30):
        sample = _mapper(FLIP)(record)
        boxes = {tuple(box) for box in sample["instances"].gt_boxes.tensor.tolist()}
        assert len(boxes) == len(sample["categories"]) == len(sample["instances"])
        assert sorted(sample["instances"].gt_classes.tolist()) == list(range(len(boxes)))
        for index, box in zip(sample["instances"].gt_classes.tolist(), sample["instances"].gt_boxes.tensor.tolist()):
            assert (sample["categories"][index] == "the thin one") == (box[0] == 10)
        seen |= set(sample["categories"])
    assert seen == {"the right one", "the red one", "the rightmost", "the thin one"}


@pytest.mark.parametrize("augmentations", [(), (FLIP,)])
def test_captions_stay_whole_with_their_phrases(picture, augmentations):
    caption = "a cat left of a bird"
    sample = _mapper(*augmentations)(_record(picture, caption=caption, phrases=[(0, 5), [(14, 20)], [6, 10]]))
    words = [[sample["caption"][begin:end] for begin, end in phrase] for phrase in sample["phrases"]]
    assert words == [["a cat"], ["a bird"], ["right" if augmentations else "left"]]
    assert sample["instances"].gt_classes.tolist() == [2, 0]
    assert "categories" not in sample
    whole = _mapper()(_record(picture, caption=caption))
    assert whole["phrases"] == [[(0, len(caption))]]


@pytest.mark.parametrize("is_train", [True, False])
def test_a_sentence_about_nothing_in_the_picture_has_no_phrase(picture, is_train):
    mapper = _mapper(FLIP, is_train=is_train)
    sample = mapper(_record(picture, caption="a fish on the left", phrases=[], annotations=[]))
    assert sample["phrases"] == []
    if is_train:
        assert sample["caption"] == "a fish on the right" and len(sample["instances"]) == 0
        assert mapper.most_labels(_record(picture, caption="a fish", phrases=[], annotations=[])) == 0
    else:
        assert sample["caption"] == "a fish on the left"


def test_all_words_of_a_sentence_about_nothing_are_negative(picture, tiny_model):
    sample = _mapper(T.Resize((80, 120)))(_record(picture, caption="a fish", phrases=[], annotations=[]))
    (prompt,) = tiny_model.prompts_of(sample)
    target = tiny_model.target_of(sample, prompt, (80, 120), 8)
    assert target.positive_map.shape == (0, 8)
    losses = tiny_model.train()([sample])
    assert losses["loss_class"] > 0 and losses["loss_l1"] == 0


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_pictures_out_of_archives_are_as_those_of_files(picture, is_train, image_format):
    mapper = _mapper(is_train=is_train, image_format=image_format)
    data = open(picture, "rb").read()
    inside = mapper(_record("shard.tar/a.png", image_bytes=data))
    assert torch.equal(inside["image"], mapper(_record(picture))["image"])
    assert inside["file_name"] == "shard.tar/a.png" and "image_bytes" not in inside


def test_broken_bytes_are_named(caplog):
    assert _mapper()(_record("shard.tar/b.jpg", image_bytes=b"no picture")) is None
    assert "unreadable picture shard.tar/b.jpg" in caplog.text


def test_bytes_are_turned_upright_as_files_are(tmp_path):
    turned = Image.new("RGB", (60, 40))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    for change in ({}, {"image_bytes": (tmp_path / "turned.jpg").read_bytes()}):
        sample = _mapper(is_train=False)(_record(str(tmp_path / "turned.jpg"), height=60, width=40, **change))
        assert sample["image"].shape == (3, 60, 40)


@pytest.mark.parametrize(
    ("flip", "words"),
    [
        ("vertical", {"the left star below the ring"}),
        ("horizontal", {"the right star above the ring"}),
        ("none", {"the left star above the ring"}),
    ],
)
def test_a_flipped_picture_keeps_its_words_true(picture, tiny_cfg, flip, words):
    tiny_cfg.INPUT.RANDOM_FLIP, tiny_cfg.INPUT.MIN_SIZE_TRAIN = flip, (40,)
    mapper = build_mapper(tiny_cfg, is_train=True)
    plain = "the left star above the ring"
    own = {"annotations": [_annotation(0, [0, 0, 30, 20])], "expression_ids": [1]}
    box = {"vertical": [0, 20, 30, 40], "horizontal": [30, 0, 60, 20], "none": [0, 0, 30, 20]}[flip]
    seen = set()
    for record in (
        _record(picture, categories=[plain], referring=True, **own),
        _record(picture, caption=plain, **own),
    ):
        for _ in range(20):
            sample = mapper(record)
            (text,) = sample.get("categories") or [sample["caption"]]
            assert (sample["instances"].gt_boxes.tensor.tolist() == [box]) == (text in words)
            seen.add(text)
    assert seen == words | ({plain} if flip != "none" else set())


def test_in_testing_the_text_is_whole_and_in_order_without_ground_truth(picture):
    mapper = _mapper(is_train=False)
    assert mapper(_record(picture))["categories"] == CLASSES
    assert mapper(_record(picture, categories=["a", "b"]))["categories"] == ["a", "b"]
    assert mapper(_record(picture, caption="a cat"))["caption"] == "a cat"
    assert not {"instances", "annotations"} & set(mapper(_record(picture)))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 no jpeg", None])
def test_an_unreadable_picture_is_named_and_left_out_of_training(tmp_path, caplog, content):
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    mapper = _mapper()
    assert mapper(_record(str(path))) is None
    assert mapper.reader.num_unreadable == 1 and "broken.jpg" in caplog.text
    black = _mapper(is_train=False)(_record(str(path)))
    assert black["image"].shape == (3, 40, 60) and black["image"].sum() == 0


def test_a_picture_of_another_size_than_its_record_is_left_out(picture, caplog):
    assert _mapper()(_record(picture, width=61)) is None
    assert "a.png" in caplog.text


def test_masks_come_along_where_the_config_wants_them(picture):
    record = _record(picture)
    record["annotations"][0]["segmentation"] = [[0.0, 0.0, 30.0, 0.0, 30.0, 20.0, 0.0, 20.0]]
    assert not _mapper()(record)["instances"].has("gt_masks")
    instances = _mapper(masks_on=True)(record)["instances"]
    assert len(instances) == 1  # the object without a mask is left out
    assert instances.gt_masks.tensor.sum() == pytest.approx(600, rel=0.02)


def test_unknown_class_names_are_an_error_that_names_the_data_set(picture):
    mapper = _mapper(is_train=False)
    with pytest.raises(ValueError, match="class names of its data set 'nowhere' are unknown"):
        mapper(_record(picture, dataset_name="nowhere"))
    MetadataCatalog.pop("nowhere", None)


def test_training_needs_a_sampler():
    with pytest.raises(ValueError, match="sampler"):
        TextDetectionMapper(is_train=True, augmentations=[])


@pytest.mark.parametrize(
    "options, message",
    [
        (["MODEL.TEXT_ENCODER.NAME", ""], "makes prompts, but the model reads no text"),
        (["INPUT.MAPPER", "Mapper"], r"unknown INPUT.MAPPER 'Mapper'; choose from \['InstanceMapper'"),
    ],
)
def test_a_config_that_no_mapper_fits_is_refused(options, message):
    cfg = get_cfg()
    add_grounding_dino_config(cfg)
    cfg.merge_from_list(options)
    with pytest.raises(ValueError, match=message):
        build_mapper(cfg, is_train=True)


@pytest.mark.parametrize("is_train", [True, False])
def test_a_config_builds_it(picture, is_train):
    name = "test_text_detection"
    MetadataCatalog.get(name).thing_classes = CLASSES
    try:
        cfg = get_cfg()
        add_grounding_dino_config(cfg)
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (80,), 120
        cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute_range", [384, 600]
        mapper = build_mapper(cfg, is_train)
        assert isinstance(mapper, MAPPER_REGISTRY.get("TextDetectionMapper"))
        for _ in range(4):
            sample = mapper(_record(picture))
            assert min(sample["image"].shape[1:]) == (80 if is_train else 120)
            assert sorted(sample["categories"]) == sorted(CLASSES)
    finally:
        MetadataCatalog.pop(name, None)


TEN = ["cat", "dog", "bird", "cow", "horse", "sheep", "car", "bus", "boat", "train"]


@pytest.fixture
def prompts(picture, tiny_cfg):
    """`prompts(key, value, ...)`: 60 drawn prompts of a picture with one of ten classes, by a mapper of this config."""
    name = "test_text_detection_ten"
    MetadataCatalog.get(name).thing_classes = TEN

    def draw(*options):
        tiny_cfg.DATASETS.TRAIN, tiny_cfg.INPUT.MIN_SIZE_TRAIN = (name,), (40,)
        tiny_cfg.merge_from_list(list(options))
        mapper = build_mapper(tiny_cfg, is_train=True)
        record = _record(picture, annotations=[_annotation(4, [0, 0, 30, 20])])
        return [mapper(record)["categories"] for _ in range(60)]

    yield draw
    MetadataCatalog.pop(name, None)


def test_the_config_sets_the_number_of_negatives(prompts):
    assert {len(names) for names in prompts("INPUT.NUM_NEGATIVE_CATEGORIES", -1)} == {10}
    assert {len(names) for names in prompts("INPUT.NUM_NEGATIVE_CATEGORIES", 3)} == {2, 3, 4}
    assert {tuple(names) for names in prompts("INPUT.NUM_NEGATIVE_CATEGORIES", 0)} == {("horse",)}


def test_the_config_sets_how_often_the_negatives_are_all_listed(prompts):
    options = ("INPUT.NUM_NEGATIVE_CATEGORIES", 8, "INPUT.FULL_NEGATIVES_PROBABILITY")
    full = {p: sum(len(names) == 9 for names in prompts(*options, p)) for p in (0.0, 0.5, 1.0)}
    assert full[0.0] < 20 < full[0.5] < 45 and full[1.0] == 60


def test_the_config_sets_the_order_of_names(prompts):
    assert all(names == TEN for names in prompts("INPUT.SHUFFLE_CATEGORIES_ON", False))
    assert len({tuple(names) for names in prompts("INPUT.SHUFFLE_CATEGORIES_ON", True)}) > 50


def test_the_config_sets_the_tokens_of_a_prompt(prompts):
    for tokens, most in ((4, 1), (8, 3), (256, 10)):
        drawn = prompts("MODEL.TEXT_ENCODER.MAX_TOKENS", tokens)
        assert {len(names) for names in drawn} == {most} and all("horse" in names for names in drawn)


def test_the_most_labels_of_a_record(picture):
    mapper = _mapper(sampler=TextSampler(num_negatives=0))
    assert mapper.most_labels(_record(picture)) == 2
    assert _mapper().most_labels(_record(picture)) == 3
    assert _mapper().most_labels(_record(picture, annotations=[_annotation(0, [0, 0, 9, 9], iscrowd=1)])) == 0
    assert mapper.most_labels(_record(picture, caption="a cat and a dog", phrases=[(0, 5), (10, 15), (2, 5)])) == 3
    assert mapper.most_labels(_record(picture, caption="a cat")) == 1
    same = [_annotation(0, [0, 0, 9, 9]), _annotation(1, [0, 0, 9, 9]), _annotation(2, [5, 5, 9, 9])]
    assert mapper.most_labels(_record(picture, categories=CLASSES, referring=True, annotations=same)) == 2


@pytest.mark.parametrize("at_once", [0, 1])
def test_testing_asks_for_as_many_expressions_at_once_as_configured(picture, at_once):
    mapper = _mapper(is_train=False, descriptions_per_prompt=at_once)
    own = {"categories": ["the left ring", "a star"], "referring": True, "token_score": "max"}
    sample = mapper(_record(picture, **own))
    assert {key: sample[key] for key in own} == own and sample["names_per_prompt"] == at_once
    assert "names_per_prompt" not in mapper(_record(picture, categories=["a star"]))
