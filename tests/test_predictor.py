"""The predictor: every kind of picture and prompt, answers in the original picture's pixels."""

from __future__ import annotations

from pathlib import Path

from grounding_dino.model_zoo import load_cfg
from grounding_dino.predictor import GroundingPredictor, Labels, load_predictor

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from PIL import Image

TINY = [
    "MODEL.DEVICE", "cpu",
    "MODEL.PIXEL_DECODER.NUM_LAYERS", 1,
    "MODEL.TRANSFORMER_DECODER.NUM_LAYERS", 1,
    "MODEL.TEXT_ENCODER.NUM_LAYERS", 1,
    "MODEL.QUERY_SELECTION.NUM_QUERIES", 20,
    "INPUT.MIN_SIZE_TEST", 64,
    "INPUT.MAX_SIZE_TEST", 96,
]  # fmt: skip
NAMES = ["red circle", "blue star"]


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    return GroundingPredictor(load_cfg("shapes_tiny", TINY))


@pytest.fixture
def picture():
    """(40, 60, 3) RGB, differing in its channels."""
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def same(a: Instances, b: Instances, tolerance: float = 1e-4) -> bool:
    return (
        len(a) == len(b)
        and torch.allclose(a.scores, b.scores, atol=tolerance)
        and torch.allclose(a.pred_boxes.tensor, b.pred_boxes.tensor, atol=100 * tolerance)
    )


def agree(a: Instances, b: Instances) -> bool:
    """The same detections up to rounding, in any order: close scores may swap."""
    distance = torch.cdist(a.pred_boxes.tensor, b.pred_boxes.tensor, p=float("inf"))
    nearest = (distance + 100 * (a.scores[:, None] - b.scores[None]).abs()).argmin(1)
    boxes_agree = distance.gather(1, nearest[:, None]).max() < 0.06  # 1e-3 of the picture
    return len(a) == len(b) and bool(boxes_agree) and torch.allclose(a.scores, b.scores[nearest], atol=1e-3)


# Pictures


def test_answers_in_the_original_pictures_pixels(predictor, picture):
    found = predictor(picture, NAMES, box_threshold=0.0)
    assert isinstance(found, Instances) and found.image_size == (40, 60)
    assert len(found) == 20 and len(set(found.pred_boxes.tensor[:, 2].tolist())) > 1
    assert found.pred_boxes.tensor.min() >= 0
    assert (found.pred_boxes.tensor.amax(0) <= torch.tensor([60.0, 40.0, 60.0, 40.0])).all()
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.labels == [NAMES[i] for i in found.pred_classes.tolist()]
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes", "labels"}


def test_all_kinds_of_pictures_agree(predictor, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.png")
    kinds = [
        picture[..., ::-1],
        Image.fromarray(picture),
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        torch.from_numpy(picture).permute(2, 0, 1),
        np.dstack([picture[..., ::-1], np.full((40, 60), 7, np.uint8)]),
        Image.fromarray(np.dstack([picture, np.full((40, 60), 7, np.uint8)]), "RGBA"),
        picture.astype(np.uint16)[..., ::-1] * 257,
    ]
    expected = predictor(picture, NAMES, box_threshold=0.0, image_format="RGB")
    assert not same(expected, predictor(picture, NAMES, box_threshold=0.0, image_format="BGR"))
    for kind in kinds:
        assert same(expected, predictor(kind, NAMES, box_threshold=0.0))


def test_grey_pictures_of_all_depths_agree(predictor, picture):
    grey = picture[..., 0]
    expected = predictor(np.repeat(grey[..., None], 3, axis=2), NAMES, box_threshold=0.0)
    deep = grey.astype(np.uint16) * 257
    for kind in (grey, grey[..., None], deep, Image.fromarray(grey), Image.fromarray(deep), torch.tensor(grey)[None]):
        assert same(expected, predictor(kind, NAMES, box_threshold=0.0))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"])
def test_pil_pictures_of_any_mode(predictor, picture, mode):
    source = Image.fromarray(picture)
    converted = source.convert("RGBA").convert("PA") if mode == "PA" else source.convert(mode)
    assert predictor(converted, NAMES, box_threshold=0.0).image_size == (40, 60)


def test_exif_orientation_is_applied(predictor, picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    found = predictor(tmp_path / "turned.png", NAMES, box_threshold=0.0)
    assert found.image_size == (60, 40)
    assert same(found, predictor(np.rot90(picture, -1), NAMES, box_threshold=0.0, image_format="RGB"))


def test_a_batch_equals_single_pictures(predictor, picture):
    pictures = [picture, picture[:30, :20], picture[::-1].copy()]
    together = predictor(pictures, NAMES, box_threshold=0.0)
    assert isinstance(together, list)
    for one, found in zip(pictures, together):
        assert agree(found, predictor(one, NAMES, box_threshold=0.0))


def test_stacked_pictures_and_no_pictures(predictor, picture):
    assert len(predictor(np.stack([picture, picture]), NAMES)) == 2
    assert len(predictor(torch.zeros(2, 3, 40, 60, dtype=torch.uint8), NAMES)) == 2
    assert predictor([], NAMES) == []


# Prompts


def test_prompts_of_each_picture(predictor, picture):
    lists = [["red circle"], ["blue star", "green square", "red circle"]]
    for names, found in zip(lists, predictor([picture, picture], lists, box_threshold=0.0)):
        assert agree(found, predictor(picture, names, box_threshold=0.0))
        assert set(found.labels) <= set(names)
    captions = ["a red circle", "two stars."]
    for caption, found in zip(captions, predictor([picture, picture], caption=captions, box_threshold=0.0)):
        assert agree(found, predictor(picture, caption=caption, box_threshold=0.0))


def test_caption_gives_phrases(predictor, picture):
    found = predictor(picture, caption="a red circle", box_threshold=0.0, text_threshold=0.0)
    assert set(found.get_fields()) == {"pred_boxes", "scores", "phrases"}
    assert len(found.phrases) == len(found) == 20 and "a red circle" in found.phrases[0]
    none = predictor(picture, caption="a red circle", box_threshold=0.0, text_threshold=1.0)
    assert set(none.phrases) <= {"a", "red", "circle"}  # the best word, where none passes


def test_threshold_is_strict_and_may_leave_nothing(predictor, picture):
    found = predictor(picture, NAMES, box_threshold=0.0)
    middle = found.scores[7].item()
    kept = predictor(picture, NAMES, box_threshold=middle)
    assert kept.scores.tolist() == [score for score in found.scores.tolist() if score > middle]
    empty = predictor(picture, NAMES, box_threshold=1.0)
    assert len(empty) == 0 and empty.labels == [] and empty.pred_boxes.tensor.shape == (0, 4)


def test_one_label_a_query_or_all(predictor, picture):
    every = predictor(picture, NAMES, box_threshold=0.0, best_label_only=False)
    best = predictor(picture, NAMES, box_threshold=0.0)
    assert len(every) == 40 and len(best) == 20
    for name in NAMES:
        assert sum(label == name for label in every.labels) == 20
    pairs = zip(every.pred_boxes.tensor.tolist(), every.scores.tolist())
    highest: dict[tuple[float, ...], float] = {}
    for box, score in pairs:
        highest[tuple(box)] = max(score, highest.get(tuple(box), 0.0))
    assert sorted(highest.values(), reverse=True) == pytest.approx(best.scores.tolist())


def test_more_categories_than_a_prompt_holds(predictor, picture):
    names = [f"number {i} of many" for i in range(100)]
    found = predictor(picture, names, box_threshold=0.0, best_label_only=False)
    assert found.pred_classes.max() > 60 and found.labels[0] == names[found.pred_classes[0]]


@pytest.mark.parametrize("names", [["cat", "cat"], ["Cat"], ["猫"], ["🐈"], ["t.v."], ["what?"], ["  many   blanks "]])
def test_unusual_names_come_back_as_given(predictor, picture, names):
    found = predictor(picture, names, box_threshold=0.0)
    assert set(found.labels) == {names[0]}


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither is given"),
        ({"categories": NAMES, "caption": "x"}, "both are given"),
        ({"categories": "cat . dog ."}, "list of names"),
        ({"categories": []}, "empty"),
        ({"categories": ["cat", "..."]}, "no word"),
        ({"categories": ["cat", 3]}, "category 1"),
        ({"categories": ["x" + " y" * 300]}, "tokens"),
        ({"caption": ""}, "no word"),
        ({"caption": "?!."}, "no word"),
        ({"caption": ["a", "b"]}, "2 captions for 1 pictures"),
        ({"categories": [["a"], ["b"]]}, "2 lists of categories for 1 pictures"),
        ({"categories": [["a"], "b"]}, "picture 1 must be a list of names, not 'b'"),
        ({"categories": ["a", ["b"]]}, "picture 0 must be a list of names, not 'a'"),
        ({"categories": 5}, "list of names, .* not 5"),
        ({"categories": [3, 4]}, "category 0 must be a string"),
        ({"caption": 5}, "caption must be a text, .* not 5"),
        ({"caption": [5]}, "caption must be a text, not 5"),
        ({"categories": NAMES, "box_threshold": 35}, "box_threshold"),
        ({"categories": NAMES, "box_threshold": "0.3"}, "box_threshold must be a number .* not '0.3'"),
        ({"categories": NAMES, "text_threshold": None}, "text_threshold must be a number .* not None"),
        ({"categories": NAMES, "image_format": "HSV"}, "image_format"),
    ],
)
def test_bad_arguments_get_a_sentence(predictor, picture, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        predictor(picture, **arguments)


def test_a_text_is_checked_without_a_picture(predictor):
    predictor.check_prompt(NAMES)
    predictor.check_prompt([["a"], ["b"]])
    predictor.check_prompt(caption="a cat")
    with pytest.raises(ValueError, match="no word"):
        predictor.check_prompt(["cat", "..."])
    with pytest.raises(ValueError, match="no word"):
        predictor.check_prompt(caption=["a cat", "?"])


@pytest.mark.parametrize("size", [(3000, 2), (3000, 1), (1, 3000), (1, 1)])
def test_pictures_of_any_proportion(predictor, size):
    found = predictor(Image.new("RGB", size), NAMES, box_threshold=0.0)
    assert found.image_size == size[::-1] and len(found) > 0


@pytest.mark.parametrize("part", ["box_heads", "text_encoder.projection"])
def test_weights_that_are_nan_are_named(picture, part):
    torch.manual_seed(0)
    broken = GroundingPredictor(load_cfg("shapes_tiny", TINY))
    broken.weights = "run/model_final.pth"
    names = [name for name, _ in broken.model.named_parameters() if part in name and name.endswith("bias")]
    broken.model.get_parameter(names[0]).data.fill_(float("nan"))
    for prompt in ({"categories": NAMES}, {"caption": "a red circle"}):
        with pytest.raises(ValueError, match=rf"run/model_final.pth.*1 tensor \({names[0]}\) hold NaN"):
            broken(picture, **prompt)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), "uint8"),
        (np.zeros((4, 5, 2), np.uint8), "shape"),
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (torch.zeros(3, 4, 5), "torch.float32"),
        (torch.zeros(4, 5, dtype=torch.uint8), r"\(4, 5\)"),
        (3, "int"),
        ("no/such/picture.jpg", "no/such/picture.jpg"),
    ],
)
def test_bad_pictures_get_a_sentence(predictor, bad, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        predictor(bad, NAMES)


def test_damaged_files_are_named(predictor, picture, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ValueError, match="text.jpg"):
        predictor(tmp_path / "text.jpg", NAMES)
    Image.fromarray(picture).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match="cut.png"):
        predictor(tmp_path / "cut.png", NAMES)


# Instances with texts


def test_labels_follow_their_instances(predictor, picture):
    found = predictor(picture, NAMES, box_threshold=0.0)
    mask = found.pred_classes == 0
    assert found[mask].labels == ["red circle"] * int(mask.sum())
    assert found[torch.tensor([3, 1])].labels == [found.labels[3], found.labels[1]]
    assert found[2:5].labels == found.labels[2:5]
    assert Instances.cat([found, found]).labels == found.labels * 2
    assert found.to("cpu").labels == found.labels


def test_labels_are_a_list():
    labels = Labels(["a", "b", "c"])
    assert labels == ["a", "b", "c"] and labels[1] == "b" and labels[-1] == "c"
    assert labels[np.array([True, False, True])] == ["a", "c"] and labels[torch.tensor(2)] == "c"


# Models by name


def test_load_predictor_from_a_checkpoint(predictor, picture, tmp_path):
    from safetensors.torch import save_model

    file = tmp_path / "tiny.safetensors"
    save_model(predictor.model, str(file))
    loaded = load_predictor("shapes_tiny", file, opts=TINY)
    assert same(loaded(picture, NAMES, box_threshold=0.0), predictor(picture, NAMES, box_threshold=0.0))


def test_an_existing_model_can_be_wrapped(predictor, picture):
    wrapped = GroundingPredictor(model=predictor.model, min_size=64, max_size=96)
    assert same(wrapped(picture, NAMES, box_threshold=0.0), predictor(picture, NAMES, box_threshold=0.0))
    with pytest.raises(ValueError, match="INPUT.FORMAT"):
        GroundingPredictor(model=predictor.model, input_format="YUV")


def test_channel_order_of_the_model(predictor, picture):
    swapped = GroundingPredictor(model=predictor.model, min_size=64, max_size=96, input_format="BGR")
    assert torch.equal(swapped.prepare(picture)["image"], predictor.prepare(picture)["image"].flip(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opts": ["INPUT.MIN_SIZE_TESTS", 64]}, "did you mean INPUT.MIN_SIZE_TEST"),
        ({"opts": ["INPUT.MIN_SIZE_TEST"]}, "one is left over"),
        ({"opts": "INPUT.MIN_SIZE_TEST 64"}, "not the string"),
        ({"opts": ["INPUT.MIN_SIZE_TEST", "wide"]}, "INPUT.MIN_SIZE_TEST cannot be 'wide'"),
        ({"device": "gpu"}, "there is no device 'gpu'"),
        ({"device": 3.5}, "there is no device 3.5"),
        ({"device": "meta"}, "no 'meta' device"),
        ({"opts": ["MODEL.DEVICE", "gpu"]}, "there is no device 'gpu'"),
    ],
)
def test_load_predictor_refuses_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_predictor("shapes_tiny", "no_such.pth", **arguments)


def test_unknown_checkpoint_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.pth"):
        load_predictor("shapes_tiny", Path(tmp_path / "nowhere.pth"), opts=TINY)


# Work that is done once


@pytest.mark.parametrize("name, dtype", [("float32", None), ("bfloat16", torch.bfloat16)])
def test_runs_in_the_precision_of_the_configuration(picture, name, dtype):
    predictor = GroundingPredictor(load_cfg("shapes_tiny", [*TINY, "TEST.PRECISION", name]))
    seen = []
    predictor.model.backbone.register_forward_hook(
        lambda *_: seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
    )
    predictor(picture, NAMES)
    assert seen == [dtype]


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="unknown TEST.PRECISION 'half'"):
        GroundingPredictor(load_cfg("shapes_tiny", [*TINY, "TEST.PRECISION", "half"]))


def test_a_batch_runs_backbone_and_text_once(predictor, picture):
    """Per-image prompts in one batch: equal pictures share the backbone's run, equal prompts the text encoder's."""
    model, seen = predictor.model, {"backbone": [], "text": []}
    model.text_encoder.clear_cache()
    hooks = [
        model.backbone.register_forward_hook(lambda module, inputs, output: seen["backbone"].append(len(inputs[0]))),
        model.text_encoder.bert.register_forward_hook(
            lambda module, args, kwargs, output: seen["text"].append(len(kwargs["input_ids"])), with_kwargs=True
        ),
    ]
    lists = [NAMES, ["green ring"], NAMES, ["green ring"]]
    found = predictor([picture] * 4, lists, box_threshold=0.0)
    for hook in hooks:
        hook.remove()
    assert seen["backbone"] == [4]
    assert seen["text"] == [3]  # two prompts, and the padding between them
    for names, of_picture in zip(lists, found):
        assert agree(of_picture, predictor(picture, names, box_threshold=0.0))
