"""The authors' inference functions: their sizes, thresholds, phrases and return values."""

from __future__ import annotations

import builtins
import copy
import json
from pathlib import Path

from grounding_dino.inference import (
    Model,
    annotate,
    load_image,
    load_model,
    normalise_picture,
    predict,
    preprocess_caption,
    resized_size,
    select_detections,
)
from grounding_dino.layers.box_ops import box_cxcywh_to_xyxy
from grounding_dino.model_zoo import build_model, load_cfg
from grounding_dino.text.prompt import build_caption_prompt
from grounding_dino.text.tokenizer import build_tokenizer

import numpy as np
import pytest
import torch
from PIL import Image

REFERENCE = Path(__file__).parent / "reference" / "grounding_dino"
RESIZE = json.loads((REFERENCE / "resize_sizes.json").read_text())
POSTPROCESS = json.loads((REFERENCE / "postprocess.json").read_text())
TINY = [
    "MODEL.DEVICE", "cpu",
    "MODEL.PIXEL_DECODER.NUM_LAYERS", 1,
    "MODEL.TRANSFORMER_DECODER.NUM_LAYERS", 1,
    "MODEL.TEXT_ENCODER.NUM_LAYERS", 1,
    "MODEL.QUERY_SELECTION.NUM_QUERIES", 20,
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(load_cfg("shapes_tiny", TINY))


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


@pytest.fixture
def drop_in(model):
    """A `Model` around the small network."""
    instance = Model.__new__(Model)
    instance.model, instance.device = model, "cpu"
    return instance


# Against the authors' numbers


@pytest.mark.parametrize("row", RESIZE["rows"], ids=str)
def test_resize_sizes(row):
    assert list(resized_size(*row[:2])) == row[2:]


@pytest.mark.parametrize("run", POSTPROCESS["runs"], ids=lambda r: f"{r['box_threshold']}-{r['remove_combined']}")
def test_thresholds_scores_and_phrases(run):
    arrays = np.load(REFERENCE / "postprocess.npz")
    tokenizer = build_tokenizer()
    prompt = build_caption_prompt(POSTPROCESS["caption"], tokenizer)
    assert list(prompt.input_ids) == POSTPROCESS["input_ids"]
    boxes, scores, phrases = select_detections(
        torch.from_numpy(arrays["logits"]),
        torch.from_numpy(arrays["boxes"]),
        prompt,
        tokenizer,
        run["box_threshold"],
        run["text_threshold"],
        run["remove_combined"],
    )
    assert torch.equal(boxes, torch.from_numpy(arrays["boxes"])[run["kept_queries"]])
    assert scores.tolist() == pytest.approx(run["scores"], abs=1e-6)
    assert phrases == run["phrases"]


def test_boxes_in_pixels():
    arrays = np.load(REFERENCE / "postprocess.npz")
    detections = Model.post_process_result(
        480, 640, torch.from_numpy(arrays["boxes"]), torch.zeros(len(arrays["boxes"]))
    )
    assert np.allclose(detections.xyxy, arrays["xyxy_480x640"], atol=1e-4)


@pytest.mark.parametrize("case", json.loads((REFERENCE / "text_cases.json").read_text())["phrases2classes"], ids=str)
def test_phrases2classes(case):
    assert Model.phrases2classes(case["phrases"], case["classes"]).tolist() == case["class_ids"]


def test_preprocess_caption():
    assert preprocess_caption(" A Cat ") == "a cat."
    assert preprocess_caption("a cat .") == "a cat ."


# Pictures


def test_load_image(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.png")
    source, tensor = load_image(str(tmp_path / "a.png"))
    assert np.array_equal(source, picture)
    assert tensor.shape == (3, 800, 1200) and tensor.dtype == torch.float32
    grey = normalise_picture(np.full((800, 900, 3), 255, np.uint8))
    assert grey.shape == (3, 800, 900)  # a shorter side of 800 stays
    assert grey[:, 5, 5].tolist() == pytest.approx(
        [(1 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    )


def test_load_image_names_a_missing_file():
    with pytest.raises(FileNotFoundError, match="missing.jpg"):
        load_image("missing.jpg")


# The model's answer


def test_predict(model, picture):
    image = normalise_picture(picture)[:, :64, :96]
    boxes, scores, phrases = predict(model, image, "Red circle . blue star", 0.0, 0.0)
    assert boxes.shape == (20, 4) and scores.shape == (20,) and len(phrases) == 20
    assert boxes.device.type == "cpu" and "red circle" in phrases[0]
    kept, kept_scores, _ = predict(model, image, "red circle . blue star .", scores.median().item(), 0.0, device="cpu")
    assert torch.equal(kept, boxes[scores > scores.median()])
    assert torch.equal(kept_scores, scores[scores > scores.median()])
    assert set(predict(model, image, "red circle", 0.0, 1.0)[2]) == {""}
    assert len(predict(model, image, "red circle", 1.0, 0.0)[0]) == 0


def test_predict_agrees_with_the_predictor(model, picture):
    from grounding_dino.predictor import GroundingPredictor

    found = GroundingPredictor(model=model, min_size=0)(
        picture, caption="red circle", box_threshold=0.0, text_threshold=0.0, image_format="RGB"
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    image = (torch.from_numpy(picture).permute(2, 0, 1) / 255 - mean) / std
    boxes, scores, phrases = predict(model, image, "red circle", 0.0, 0.0)
    order = scores.argsort(descending=True, stable=True)
    pixels = box_cxcywh_to_xyxy(boxes * torch.tensor([96, 64, 96, 64])).clamp(min=0)
    assert torch.allclose(scores[order], found.scores, atol=1e-4)
    assert torch.allclose(pixels[order][0].clamp(max=96), found.pred_boxes.tensor[0], atol=1e-2)
    assert sorted(phrases) == sorted(found.phrases)


def test_annotate(picture):
    before = picture.copy()
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.2, 0.2]])
    drawn = annotate(picture, boxes, torch.tensor([0.9, 0.4]), ["cat", ""])
    assert drawn.shape == picture.shape and drawn.dtype == np.uint8 and drawn.flags["C_CONTIGUOUS"]
    assert np.array_equal(picture, before)
    nothing = annotate(picture, torch.zeros(0, 4), torch.zeros(0), [])
    assert np.array_equal(nothing, picture[..., ::-1])  # BGR


# Model


def test_model_with_caption(drop_in, picture, monkeypatch):
    monkeypatch.setattr("grounding_dino.inference.SHORTER_SIDE", 64)
    detections, phrases = drop_in.predict_with_caption(picture[..., ::-1], "red circle", 0.0, 0.0)
    assert type(detections).__module__.startswith("supervision")
    assert len(detections) == len(phrases) == 20
    assert detections.confidence.shape == (20,) and detections.xyxy.max() > 2


def test_model_with_classes(drop_in, picture, monkeypatch):
    monkeypatch.setattr("grounding_dino.inference.SHORTER_SIDE", 64)
    detections = drop_in.predict_with_classes(picture, ["Red circle", "star"], 0.0, 0.0)
    assert set(detections.class_id.tolist()) <= {0, 1, None} and 0 in detections.class_id.tolist()


def test_model_preprocesses_bgr(picture):
    assert torch.equal(Model.preprocess_image(picture[..., ::-1]), normalise_picture(picture))


def test_without_supervision_there_is_a_remedy(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "supervision":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="pip install supervision"):
        Model.post_process_result(1, 1, torch.zeros(0, 4), torch.zeros(0))


def test_load_model(model, tmp_path):
    from safetensors.torch import save_model

    yaml = tmp_path / "tiny.yaml"
    cfg = load_cfg("shapes_tiny", TINY)
    yaml.write_text(cfg.dump())
    save_model(model, str(tmp_path / "tiny.safetensors"))
    loaded = load_model(str(yaml), str(tmp_path / "tiny.safetensors"))
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].cpu(), value)


def test_load_model_warns_of_another_size(monkeypatch, caplog):
    monkeypatch.setattr("grounding_dino.inference.build_model", lambda cfg, weights: torch.nn.Identity())
    load_model("swin_t_ogc", "a.pth", "cpu")
    assert not caplog.messages
    load_model("shapes_tiny", "a.pth", "cpu")
    (message,) = caplog.messages
    assert "shapes_tiny" in message and "GroundingPredictor" in message


def test_no_side_of_a_thin_picture_vanishes():
    assert min(resized_size(3000, 1)) == min(resized_size(1, 3000)) == 1
    assert min(normalise_picture(np.zeros((1, 3000, 3), np.uint8)).shape) == 1


def test_predictions_that_are_nan_are_refused(model, picture):
    broken = copy.deepcopy(model)
    name = next(name for name, _ in broken.named_parameters() if "box_heads" in name and name.endswith("bias"))
    broken.get_parameter(name).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="model's weights cannot be used.*NaN"):
        predict(broken, normalise_picture(picture), "a red circle", 0.0, 0.0)


def test_load_model_explains_a_foreign_script(tmp_path):
    with pytest.raises(ValueError, match="not executed"):
        load_model("some/other_model.py", "a.pth")


def test_models_of_another_kind_are_refused(tiny_glip, picture):
    """GLIP reads BGR pictures and has no queries: its pictures would not be those that load_image gives."""
    with pytest.raises(ValueError, match=r"glip_t_c is a GLIP, but these functions .*load_predictor runs the model"):
        load_model("glip_t_c", "none.pth")
    with pytest.raises(TypeError, match=r"the model is a GLIP, but .*load_predictor runs the model"):
        predict(tiny_glip, normalise_picture(picture), "a dog", 0.3, 0.25)
