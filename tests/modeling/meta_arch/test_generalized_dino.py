"""The whole model: prompts, text cache, precision, bad input."""

from collections.abc import Callable
from typing import Any

import grounding_dino.modeling  # noqa: F401

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

MakePicture = Callable[..., dict[str, Any]]


class Calls:
    """Counts the calls of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        self.handle = module.register_forward_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1


# ------------------------------------------------------------------------------------------------- prompts


@torch.no_grad()
def test_categories(tiny_model: nn.Module, picture: MakePicture) -> None:
    (result,) = tiny_model([picture(60, 80, categories=["cat", "red dog"], height=120, width=160)])
    found = result["instances"]
    assert found.image_size == (120, 160) and len(found) == 12 * 2
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes", "query_indices"}
    assert set(found.pred_classes.tolist()) == {0, 1} and found.pred_classes.dtype == torch.int64
    assert (found.scores.diff() <= 0).all() and ((found.scores >= 0) & (found.scores <= 1)).all()
    assert found.pred_boxes.tensor[:, 2].max() > 80  # of the output's size, not the tensor's


@torch.no_grad()
def test_caption(tiny_model: nn.Module, picture: MakePicture) -> None:
    (result,) = tiny_model([picture(60, 80, caption="a cat and a dog")])
    found = result["instances"]
    assert found.image_size == (60, 80) and len(found) == 12
    assert set(found.get_fields()) == {"pred_boxes", "scores", "token_logits", "query_indices"}
    assert found.token_logits.shape == (12, 8)  # [CLS] a cat and a dog . [SEP]
    torch.testing.assert_close(found.scores, found.token_logits.sigmoid().amax(1))


@torch.no_grad()
def test_long_list_is_detected_in_chunks(tiny_cfg: CfgNode, tiny_model: nn.Module, picture: MakePicture) -> None:
    names = [f"thing number {i}" for i in range(300)]
    tiny_model.detections_per_image = 12 * len(names)
    backbone, bert = Calls(tiny_model.backbone), Calls(tiny_model.text_encoder.bert)
    (whole,) = tiny_model([picture(60, 80, categories=names)])
    assert backbone.count == 1 and bert.count > 3
    chunks = tiny_model.prompts_of({"categories": names})
    assert len(chunks) == bert.count and max(len(p) for p in chunks) <= 256
    found = whole["instances"]
    assert len(found) == 12 * 300 and (found.scores.diff() <= 0).all()
    assert torch.bincount(found.pred_classes).tolist() == [12] * 300
    score = dict(zip(zip(found.query_indices.tolist(), found.pred_classes.tolist()), found.scores))
    for number, chunk in enumerate(chunks):
        (part,) = tiny_model([picture(60, 80, categories=list(chunk.names))])
        part = part["instances"]
        for query, category, expected in zip(part.query_indices, part.pred_classes, part.scores):
            key = int(query) + 12 * number, chunk.category_indices[int(category)]
            assert score.pop(key).item() == pytest.approx(expected.item(), abs=1e-5)
    assert not score

    tiny_model.detections_per_image = 50
    (best,) = tiny_model([picture(60, 80, categories=names)])
    torch.testing.assert_close(best["instances"].scores, found.scores[:50])


@torch.no_grad()
def test_a_list_as_long_as_lvis_runs_the_backbone_once_and_bert_for_the_first_picture_only(
    tiny_cfg: CfgNode, picture: MakePicture
) -> None:
    names = [f"thing{i}" for i in range(1203)]
    tiny_cfg.merge_from_list(["TEST.CATEGORIES_PER_PROMPT", 40, "TEST.DETECTIONS_PER_IMAGE", 20])
    model = build_model(tiny_cfg).eval()
    backbone, bert = Calls(model.backbone), Calls(model.text_encoder.bert)
    detections = [len(output["candidates"]) for output in model([picture(32, 40, categories=names)])]
    assert backbone.count == 1 and bert.count == 31 and detections == [31 * 20]
    model([picture(32, 40, seed=1, categories=names)])
    assert backbone.count == 2 and bert.count == 31


@torch.no_grad()
def test_pictures_with_different_numbers_of_chunks(tiny_model: nn.Module, picture: MakePicture) -> None:
    tiny_model.detections_per_image = 10**6
    inputs = [
        picture(40, 64, categories=["cat"]),
        picture(64, 40, categories=[f"thing number {i}" for i in range(100)]),
        picture(64, 40, caption="a cat"),
    ]
    together = tiny_model(inputs)
    for one, result in zip(inputs, together):
        (alone,) = tiny_model([one])
        torch.testing.assert_close(result["instances"].scores, alone["instances"].scores, atol=1e-4, rtol=0)
    assert [len(r["instances"]) for r in together] == [12, 12 * 100, 12]


@torch.no_grad()
def test_same_prompt_runs_bert_once(tiny_model: nn.Module, picture: MakePicture) -> None:
    bert = Calls(tiny_model.text_encoder.bert)
    first = tiny_model([picture(40, 40, categories=["cat", "dog"])])
    again = tiny_model([picture(40, 40, categories=["cat", "dog"])])
    assert bert.count == 1
    assert torch.equal(first[0]["instances"].scores, again[0]["instances"].scores)
    tiny_model([picture(40, 40, categories=["cat", "bus"])])
    assert bert.count == 2


@torch.no_grad()
@pytest.mark.parametrize("text", [{"categories": ["cat", "red dog", "cat"]}, {"caption": "a cat beside a dog"}])
def test_a_second_picture_does_no_work_on_its_text(
    tiny_model: nn.Module, picture: MakePicture, monkeypatch: pytest.MonkeyPatch, text: dict[str, Any]
) -> None:
    first = tiny_model([picture(40, 40, seed=1, **text)])[0]["instances"]
    monkeypatch.setattr("grounding_dino.text.tokenizer.WordPieceTokenizer.encode", None)  # calling it would fail
    monkeypatch.setattr("grounding_dino.text.text_encoder.collate_prompts", None)
    bert = Calls(tiny_model.text_encoder.bert)
    tiny_model([picture(48, 40, seed=2, **text)] * 2)
    again = tiny_model([picture(40, 40, seed=1, **text)])[0]["instances"]
    assert bert.count == 0 and torch.equal(first.scores, again.scores)


@torch.no_grad()
def test_no_pictures_no_detections(tiny_model: nn.Module) -> None:
    assert tiny_model([]) == []


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (2, 31), (31, 1)])
def test_smallest_pictures(tiny_model: nn.Module, picture: MakePicture, size: tuple[int, int]) -> None:
    (result,) = tiny_model([picture(*size, categories=["cat"])])
    assert 0 < len(result["instances"]) <= 12 and result["instances"].scores.isfinite().all()


@torch.no_grad()
def test_float_pictures(tiny_model: nn.Module, picture: MakePicture) -> None:
    inputs = picture(40, 48, categories=["cat"])
    expected = tiny_model([inputs])[0]["instances"].scores
    assert torch.equal(tiny_model([{**inputs, "image": inputs["image"].float()}])[0]["instances"].scores, expected)


# ----------------------------------------------------------------------------------------------- precision


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(tiny_model: nn.Module, picture: MakePicture, dtype: torch.dtype, autocast: bool) -> None:
    inputs = [picture(64, 80, categories=["cat", "dog"]), picture(48, 60, seed=1, categories=["bus"])]
    expected = [r["instances"].scores for r in tiny_model(inputs)]
    if autocast:
        with torch.autocast("cpu", dtype):
            results = tiny_model(inputs)
    else:
        results = tiny_model.to(dtype)(inputs)
    for result, scores in zip(results, expected):
        found = result["instances"]
        assert found.scores.dtype == found.pred_boxes.tensor.dtype == torch.float32
        torch.testing.assert_close(found.scores, scores, atol=0.03, rtol=0)


@torch.no_grad()
def test_float64_is_float64_throughout(tiny_model: nn.Module, picture: MakePicture) -> None:
    inputs = [picture(64, 80, categories=["cat", "dog"])]
    expected = tiny_model(inputs)[0]["instances"].scores
    torch.testing.assert_close(tiny_model.double()(inputs)[0]["instances"].scores, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_compiled(tiny_model: nn.Module, picture: MakePicture) -> None:
    """`torch.compile` of everything behind the text's preparation gives the same detections."""
    inputs = [picture(64, 80, categories=["cat", "dog"]), picture(48, 60, seed=1, categories=["bus"])]
    expected = [r["instances"].scores for r in tiny_model(inputs)]
    tiny_model.detect = torch.compile(tiny_model.detect, backend="aot_eager")
    for result, scores in zip(tiny_model(inputs), expected):
        torch.testing.assert_close(result["instances"].scores, scores, atol=1e-4, rtol=0)


# ----------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("shape", [(1, 40, 40), (4, 40, 40), (40, 40), (3, 0, 40)])
def test_wrong_image_shape(tiny_model: nn.Module, shape: tuple[int, ...]) -> None:
    image = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"with file_name 'a.png' has the shape \(.*takes \(3, height, width\)"):
        tiny_model([{"image": image, "categories": ["cat"], "file_name": "a.png"}])


def test_nothing_to_look_for(tiny_model: nn.Module, picture: MakePicture) -> None:
    with pytest.raises(ValueError, match="picture with image_id 7 names nothing to look for: give it 'categories' or"):
        tiny_model([picture(40, 40, image_id=7)])


def test_unknown_parts(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.PIXEL_DECODER.IN_FEATURES = ["stage2", "res9"]
    with pytest.raises(ValueError, match=r"IN_FEATURES names \['res9'\], but SwinTransformer gives stage2 "):
        build_model(tiny_cfg)


def test_text_of_another_width_is_refused(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.TEXT_ENCODER.PROJECTION_ON = False
    with pytest.raises(ValueError, match=r"so text has 16 channels .* reads 64 \(MODEL.EMBED_DIM\); set it to True"):
        build_model(tiny_cfg)
    tiny_cfg.MODEL.TEXT_ENCODER.HIDDEN_SIZE = 64
    assert isinstance(build_model(tiny_cfg).text_encoder.projection, nn.Identity)
