"""The predictor with GLIP: every kind of picture and prompt, BGR input, boxes that NMS leaves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

from grounding_dino.cli.demo import main
from grounding_dino.predictor import GroundingPredictor, load_predictor

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from PIL import Image
from torch import nn

NAMES = ["red circle", "blue star"]


@pytest.fixture
def predictor(tiny_glip: nn.Module, tiny_glip_cfg: CfgNode) -> GroundingPredictor:
    """As `load_predictor` makes it, with weights that find something."""
    return GroundingPredictor(
        model=tiny_glip,
        min_size=tiny_glip_cfg.INPUT.MIN_SIZE_TEST,
        max_size=tiny_glip_cfg.INPUT.MAX_SIZE_TEST,
        input_format=tiny_glip_cfg.INPUT.FORMAT,
    )


@pytest.fixture
def picture() -> np.ndarray:
    """(40, 60, 3) RGB, differing in its channels."""
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def same(a: Instances, b: Instances) -> bool:
    return (
        len(a) == len(b)
        and torch.allclose(a.scores, b.scores, atol=1e-5)
        and torch.allclose(a.pred_boxes.tensor, b.pred_boxes.tensor, atol=1e-2)
        and (not a.has("pred_classes") or torch.equal(a.pred_classes, b.pred_classes))
    )


def test_categories(predictor: GroundingPredictor, picture: np.ndarray) -> None:
    found = predictor(picture, NAMES, box_threshold=0.0)
    assert found.image_size == (40, 60) and 0 < len(found) <= 100
    assert found.pred_boxes.tensor.min() >= 0
    assert (found.pred_boxes.tensor.amax(0) <= torch.tensor([60.0, 40.0, 60.0, 40.0])).all()
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.labels == [NAMES[i] for i in found.pred_classes.tolist()] and set(found.labels) == set(NAMES)
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes", "labels"}
    assert predictor.classes is None


def test_the_threshold_is_strict(predictor: GroundingPredictor, picture: np.ndarray) -> None:
    found = predictor(picture, NAMES, box_threshold=0.0)
    kept = predictor(picture, NAMES, box_threshold=found.scores[5].item())
    assert 0 < len(kept) <= 5 and len(predictor(picture, NAMES, box_threshold=1.0)) == 0


def test_one_label_a_place_or_all(predictor: GroundingPredictor, picture: np.ndarray) -> None:
    """A place of the maps is to GLIP what a query is to DINO."""
    every = predictor(picture, NAMES, box_threshold=0.0, best_label_only=False)
    best = predictor(picture, NAMES, box_threshold=0.0)
    assert 0 < len(best) < len(every) and set(best.scores.tolist()) <= set(every.scores.tolist())


def test_a_caption_gives_phrases(predictor: GroundingPredictor, picture: np.ndarray) -> None:
    found = predictor(picture, caption="A red circle", box_threshold=0.0, text_threshold=0.0)
    assert set(found.get_fields()) == {"pred_boxes", "scores", "phrases"} and len(found)
    assert all("a red circle" in phrase for phrase in found.phrases)
    words = predictor(picture, caption="A red circle", box_threshold=0.0, text_threshold=1.0)
    assert set(words.phrases) <= {"a", "red", "circle"}  # the best word, where none passes


def test_phrases_of_a_caption_are_each_answered(predictor: GroundingPredictor, picture: np.ndarray) -> None:
    asked = {"caption": "A red circle by a blue star", "phrases": [(0, 12), (16, 27), [(2, 5), (18, 22)]]}
    (answer,) = predictor.model([{**predictor.prepare(picture), **asked}])
    classes = answer["instances"].pred_classes
    assert set(classes.tolist()) == {0, 1, 2} and classes.tolist() == sorted(classes.tolist())
    for phrase in range(3):
        scores = answer["instances"].scores[classes == phrase]
        assert len(scores) <= 100 and scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_lists_of_pictures_and_of_prompts(predictor: GroundingPredictor, picture: np.ndarray) -> None:
    pictures = [picture, picture[:30, :20], picture[::-1].copy()]
    for one, found in zip(pictures, predictor(pictures, NAMES, box_threshold=0.0)):
        assert same(found, predictor(one, NAMES, box_threshold=0.0))
    lists = [["red circle"], ["blue star", "green square", "red circle"], [f"name {i}" for i in range(150)]]
    for one, names, found in zip(pictures, lists, predictor(pictures, lists, box_threshold=0.0)):
        assert same(found, predictor(one, names, box_threshold=0.0)) and set(found.labels) <= set(names)
    captions = ["a red circle", "two stars", "nothing"]
    for one, caption, found in zip(pictures, captions, predictor(pictures, caption=captions, box_threshold=0.0)):
        assert same(found, predictor(one, caption=caption, box_threshold=0.0))
    assert predictor([], NAMES) == []


@pytest.mark.parametrize("size", [(1, 1), (31, 20), (1, 200), (200, 1), (7, 7)])
def test_small_and_thin_pictures(predictor: GroundingPredictor, size: tuple[int, int]) -> None:
    """Smaller than the coarsest stride, 128."""
    found = predictor(Image.new("RGB", size), NAMES, box_threshold=0.0)
    assert found.image_size == size[::-1] and found.pred_boxes.tensor.isfinite().all()


def test_grey_pictures(predictor: GroundingPredictor, picture: np.ndarray) -> None:
    grey = picture[..., 0]
    expected = predictor(np.repeat(grey[..., None], 3, axis=2), NAMES, box_threshold=0.0)
    for kind in (grey, grey[..., None], Image.fromarray(grey), torch.tensor(grey)[None]):
        assert same(expected, predictor(kind, NAMES, box_threshold=0.0))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"categories": []}, "the list of categories is empty"),
        ({"categories": ["cat", " "]}, r"category 1 \(' '\) contains no word"),
        ({"categories": ["dog " * 300]}, r"category 0 .* has 300 tokens, .* shorten the name"),
        ({"caption": "..."}, "contains no word"),
        ({}, "say what to look for"),
    ],
)
def test_a_prompt_that_cannot_be_is_refused_before_there_are_pictures(
    predictor: GroundingPredictor, picture: np.ndarray, prompt: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.check_prompt(**prompt)
    with pytest.raises(ValueError, match=message):
        predictor(picture, **prompt)


def test_names_that_fit_one_by_one_take_as_many_prompts(predictor: GroundingPredictor, picture: np.ndarray) -> None:
    names = ["dog " * 200 + word for word in ("red", "blue", "green")]
    predictor.check_prompt(names)
    assert len(predictor.model.text_prompts_of({"categories": names})) == 3
    assert set(predictor(picture, names, box_threshold=0.0).labels) == set(names)


@pytest.mark.parametrize(
    "name",
    [
        *("tower.blocks.0.convolution.offset.weight", "tower.blocks.0.convolution.offset.bias"),
        *("head.box.weight", "head.centerness.bias", "head.text_bias", "backbone.patch_embed.projection.weight"),
    ],
)
def test_nan_weights_are_named(predictor: GroundingPredictor, picture: np.ndarray, name: str) -> None:
    """NaN places of a deformable convolution would be addresses outside of the map: the process would crash."""
    state = predictor.model.state_dict()
    state[next(key for key in state if key.startswith(name.rsplit(".", 1)[0]))].view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=r"cannot be used: 1 tensor .* hold NaN or infinite values"):
        predictor(picture, NAMES)


# The order of channels


def test_every_way_of_a_picture_gives_the_model_the_same_bgr(
    tiny_glip_cfg: CfgNode, predictor: GroundingPredictor, picture: np.ndarray, tmp_path: Path
) -> None:
    """Predictor, Detectron2's predictor, mapper of evaluation: one file, one tensor."""
    from grounding_dino.data.build import build_mapper

    file = tmp_path / "a.png"
    Image.fromarray(picture).save(file)
    tiny_glip_cfg.merge_from_list(["MODEL.WEIGHTS", ""])
    resize = T.ResizeShortestEdge([64, 64], 96).get_transform(picture)
    expected = torch.from_numpy(resize.apply_image(picture)[..., ::-1].transpose(2, 0, 1).copy())
    record = {"file_name": str(file), "height": 40, "width": 60, "categories": NAMES, "annotations": []}
    mapped = build_mapper(tiny_glip_cfg, is_train=False)(record)
    assert torch.equal(mapped["image"], expected)
    assert torch.equal(predictor.prepare(picture)["image"], expected)

    seen = []

    class Watch(nn.Module):
        def forward(self, inputs: list[dict]) -> list[dict]:
            seen.append(inputs[0]["image"])
            return [{}]

    detectrons = DefaultPredictor(tiny_glip_cfg)
    detectrons.model = Watch()
    detectrons(picture[..., ::-1])
    assert torch.equal(seen[0].to(torch.uint8), expected)


def test_all_kinds_of_pictures_agree(predictor: GroundingPredictor, picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    expected = predictor(picture, NAMES, box_threshold=0.0, image_format="RGB")
    assert not same(expected, predictor(picture, NAMES, box_threshold=0.0, image_format="BGR"))
    for kind in (
        picture[..., ::-1],
        Image.fromarray(picture),
        tmp_path / "a.png",
        torch.from_numpy(picture).permute(2, 0, 1),
    ):
        assert same(expected, predictor(kind, NAMES, box_threshold=0.0))


def test_a_model_that_learned_rgb_gives_the_same_with_its_filters_turned(
    tiny_glip_cfg: CfgNode, predictor: GroundingPredictor, picture: np.ndarray
) -> None:
    """The order of channels is a matter of INPUT.FORMAT and PIXEL_MEAN alone; nothing else counts on it."""
    from grounding_dino.model_zoo import build_model

    expected = predictor(picture, NAMES, box_threshold=0.0)
    tiny_glip_cfg.MODEL.PIXEL_MEAN = tiny_glip_cfg.MODEL.PIXEL_MEAN[::-1]
    tiny_glip_cfg.MODEL.PIXEL_STD = tiny_glip_cfg.MODEL.PIXEL_STD[::-1]
    model = build_model(tiny_glip_cfg)
    state = predictor.model.state_dict()
    stem = next(name for name, value in state.items() if name.startswith("backbone.") and value.dim() == 4)
    model.load_state_dict({**state, stem: state[stem].flip(1)})
    turned = GroundingPredictor(model=model, min_size=64, max_size=96, input_format="RGB")
    assert same(expected, turned(picture, NAMES, box_threshold=0.0))


# The demo


@pytest.fixture
def files(tiny_glip: nn.Module, tiny_glip_cfg: CfgNode, tmp_path: Path) -> list[str]:
    (tmp_path / "tiny.yaml").write_text(tiny_glip_cfg.dump())
    torch.save({"model": tiny_glip.state_dict()}, tmp_path / "tiny.pth")
    return ["--config-file", str(tmp_path / "tiny.yaml"), "--weights", str(tmp_path / "tiny.pth"), "--device", "cpu"]


def test_the_demo_gives_what_the_predictor_gives(
    files: list[str], predictor: GroundingPredictor, picture: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(picture).save(tmp_path / "in/colour.png")
    Image.fromarray(picture[:1, :1]).save(tmp_path / "in/pixel.png")
    Image.fromarray(picture[..., 0]).save(tmp_path / "in/grey.png")
    output = ["--output", str(tmp_path / "out"), "--json", str(tmp_path / "o.json"), "--confidence-threshold", "0"]
    assert main([*files, "--input", str(tmp_path / "in"), *output, "--categories", *NAMES, "--batch-size", "3"]) == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["colour.png", "grey.png", "pixel.png"]
    record = json.loads((tmp_path / "o.json").read_text())[0]
    expected = predictor(tmp_path / "in/colour.png", NAMES, box_threshold=0.0)
    assert [d["label"] for d in record["detections"]] == list(expected.labels)
    assert [d["score"] for d in record["detections"]] == pytest.approx(expected.scores.tolist(), abs=1e-3)


def test_the_demo_takes_captions_and_videos(
    files: list[str], picture: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    Image.fromarray(picture).save(tmp_path / "a.png")
    threshold = ["--confidence-threshold", "0"]
    assert main([*files, "--input", str(tmp_path / "a.png"), "--caption", "a red circle", *threshold]) == 0
    assert "red circle" in capsys.readouterr().out
    writer = cv2.VideoWriter(str(tmp_path / "in.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (60, 40))
    for frame in (picture, picture[::-1]):
        writer.write(np.ascontiguousarray(frame))
    writer.release()
    arguments = ["--video-input", str(tmp_path / "in.mp4"), "--output", str(tmp_path / "out.mp4"), "--text", "star ."]
    assert main([*files, *arguments, *threshold]) == 0
    assert (tmp_path / "out.mp4").stat().st_size > 0


def test_load_predictor_by_name(files: list[str], tmp_path: Path, picture: np.ndarray) -> None:
    found = load_predictor(files[1], files[3], "cpu")(picture, NAMES, box_threshold=0.0)
    assert set(found.labels) <= set(NAMES) and len(found)
