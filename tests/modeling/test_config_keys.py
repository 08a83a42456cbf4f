"""Keys that are mere numbers reach the part that they are about, and change what it does."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.engine.train_step import TrainStep
from grounding_dino.layers.bi_attention import BiAttention
from grounding_dino.layers.blocks import MultiheadAttention, StochasticDepth
from grounding_dino.structures import Targets

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

Build = Callable[..., Any]
BOXES = torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.3, 0.6, 0.2, 0.3]])
LABELS = torch.tensor([0, 1])


@pytest.fixture
def build(tiny_cfg: CfgNode) -> Build:
    """`build(*opts)`: the tiny model, always with the same weights, in training mode."""
    tiny_cfg.merge_from_list(["MODEL.EMBED_DIM", 64, "MODEL.TEXT_ENCODER.VOCABULARY_SIZE", 30522])

    def make(*opts: Any) -> Any:
        cfg = tiny_cfg.clone()
        cfg.merge_from_list(list(opts))
        torch.manual_seed(0)
        model = build_model(cfg)
        with torch.no_grad():  # what begins at zero would hide a change
            for name, parameter in model.named_parameters():
                if re.search(r"box_head|(sampling_offsets|attention_weights)\.weight", name):
                    torch.manual_seed(len(name))
                    parameter.normal_(std=0.2)
        return model.train()

    return make


def picture() -> dict[str, Any]:
    instances = Instances((48, 64))
    instances.gt_boxes = Boxes(torch.tensor([[19.2, 19.2, 44.8, 28.8], [12.8, 21.6, 25.6, 36.0]]))
    instances.gt_classes = LABELS
    torch.manual_seed(1)
    image = torch.randint(256, (3, 48, 64), dtype=torch.uint8)
    return {"image": image, "height": 48, "width": 64, "categories": ["cat", "red dog"], "instances": instances}


def losses(model: Any, seed: int = 2) -> dict[str, float]:
    inputs = picture()
    torch.manual_seed(seed)
    with torch.no_grad():
        return {name: float(value) for name, value in model([inputs]).items()}


@pytest.mark.parametrize("name", ["CLASS", "L1", "GIOU"])
def test_weights_of_the_losses(build: Build, name: str) -> None:
    key = f"MODEL.LOSS.{name}_WEIGHT"
    one, three = losses(build(key, 1.0)), losses(build(key, 3.0))
    for loss, value in one.items():
        factor = 3 if loss.startswith(f"loss_{name.lower()}") else 1
        assert value > 0 and three[loss] == pytest.approx(factor * value, rel=1e-4), loss


@pytest.mark.parametrize(("key", "value"), [("FOCAL_ALPHA", 0.9), ("FOCAL_GAMMA", 0.5)])
def test_focal_parameters_reach_the_loss_and_the_matching(build: Build, key: str, value: float) -> None:
    plain, changed = build(), build(f"MODEL.LOSS.{key}", value)
    before, after = losses(plain), losses(changed)
    assert all(after[name] != before[name] for name in before if name.startswith("loss_class"))
    assert not torch.equal(costs(plain), costs(changed))


def costs(model: Any) -> Tensor:
    torch.manual_seed(3)
    logits, boxes = torch.randn(1, 1, 5, 4), torch.rand(1, 1, 5, 4)
    return model.criterion.matcher.costs(logits, boxes, [Targets(LABELS, BOXES)])


def test_weights_of_the_matching_add_up(build: Build) -> None:
    keys = [f"MODEL.MATCHER.{name}_WEIGHT" for name in ("CLASS", "L1", "GIOU")]

    def weighted(*weights: float) -> Tensor:
        return costs(build(*(item for pair in zip(keys, weights) for item in pair)))

    parts = weighted(1.0, 0.0, 0.0), weighted(0.0, 1.0, 0.0), weighted(0.0, 0.0, 1.0)
    assert all(part.abs().max() > 0.1 for part in parts)
    torch.testing.assert_close(weighted(2.0, 3.0, 5.0), 2 * parts[0] + 3 * parts[1] + 5 * parts[2])


def denoised(model: Any) -> Any:
    torch.manual_seed(4)
    return model.denoising([Targets(LABELS, BOXES)], 12)


@pytest.mark.parametrize(
    ("opts", "slots"),
    [
        (("MODEL.DENOISING.NUM_QUERIES", 6), 12),  # 3 groups of 2 targets, twice
        (("MODEL.DENOISING.NUM_QUERIES", 10), 20),
        (("MODEL.DENOISING.NUM_QUERIES", 10, "MODEL.DENOISING.MAX_QUERIES", 8), 8),
    ],
)
def test_numbers_of_denoising_queries(build: Build, opts: tuple[Any, ...], slots: int) -> None:
    assert denoised(build(*opts)).content.shape[1] == slots


def test_noise_of_denoising_queries(build: Build) -> None:
    # without noise the queries are the targets: labels' rows and boxes
    model = build("MODEL.DENOISING.LABEL_NOISE_RATIO", 0.0, "MODEL.DENOISING.BOX_NOISE_SCALE", 0.0)
    batch = denoised(model)
    rows = model.denoising.label_embedding.weight[LABELS]
    assert torch.equal(batch.content[0], rows.repeat(len(batch.content[0]) // 2, 1))
    torch.testing.assert_close(batch.reference_points[0], BOXES.repeat(len(batch.content[0]) // 2, 1))
    labels_only = denoised(build("MODEL.DENOISING.LABEL_NOISE_RATIO", 2.0, "MODEL.DENOISING.BOX_NOISE_SCALE", 0.0))
    assert not torch.equal(labels_only.content, batch.content)
    assert torch.equal(labels_only.reference_points, batch.reference_points)
    boxes_only = denoised(build("MODEL.DENOISING.LABEL_NOISE_RATIO", 0.0, "MODEL.DENOISING.BOX_NOISE_SCALE", 0.4))
    assert torch.equal(boxes_only.content, batch.content)
    assert not torch.equal(boxes_only.reference_points, batch.reference_points)


def rates(model: nn.Module) -> dict[str, float]:
    """The rate of everything that drops something, outside backbone and BERT."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Dropout, StochasticDepth)):
            found[name] = float(module.p)
        elif isinstance(module, (MultiheadAttention, BiAttention)):
            found[name] = float(module.dropout)
    return {name: rate for name, rate in found.items() if not name.startswith(("backbone.", "text_encoder."))}


@pytest.mark.parametrize(
    ("key", "where", "count"),  # count: places in a layer
    [
        ("PIXEL_DECODER.DROPOUT", r"pixel_decoder\.layers\.\d+\.image_layer\.", 2),
        ("PIXEL_DECODER.TEXT_LAYER.DROPOUT", r"pixel_decoder\.layers\.\d+\.text_layer\.", 3),
        ("PIXEL_DECODER.TEXT_FUSION.DROPOUT", r"pixel_decoder\.layers\.\d+\.fusion\.attention", 1),
        ("PIXEL_DECODER.TEXT_FUSION.DROP_PATH_RATE", r"pixel_decoder\.layers\.\d+\.fusion\.drop_path", 1),
        ("TRANSFORMER_DECODER.DROPOUT", r"transformer_decoder\.layers\.\d+\.", 4),
        ("TEXT_ENCODER.DROPOUT", None, 0),
    ],
)
def test_what_is_dropped_in_training_and_where(build: Build, key: str, where: str | None, count: int) -> None:
    plain = ("MODEL.DENOISING.ENABLED_ON", False)  # draws random numbers of its own
    assert losses(build(*plain), seed=5) == losses(build(*plain), seed=6)
    model = build(*plain, f"MODEL.{key}", 0.3)
    assert losses(model, seed=5) != losses(model, seed=6)
    dropped = {name for name, rate in rates(model).items() if rate}
    assert len(dropped) == count * len(model.pixel_decoder.layers)  # the decoder has as many
    assert all(where is not None and re.match(where, name) for name in dropped)
    assert all(rates(model)[name] == 0.3 for name in dropped)
    assert losses(model.eval().train(), seed=5) == losses(model, seed=5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.PIXEL_DECODER.POSITION_TEMPERATURE", 10000.0),
        ("MODEL.TRANSFORMER_DECODER.REFERENCE_EPS", 0.45),
        ("MODEL.TRANSFORMER_DECODER.BOX_EPS", 0.45),
    ],
)
def test_numbers_inside_the_decoders_change_the_boxes(build: Build, key: str, value: float) -> None:
    plain, changed = (model.eval()([picture()])[0]["instances"] for model in (build(), build(key, value)))
    assert not torch.equal(plain.pred_boxes.tensor, changed.pred_boxes.tensor)


def test_the_eps_of_references_is_not_that_of_boxes(build: Build) -> None:
    decoder = build("MODEL.TRANSFORMER_DECODER.REFERENCE_EPS", 0.2, "MODEL.TRANSFORMER_DECODER.BOX_EPS", 0.1)
    assert (decoder.transformer_decoder.reference_eps, decoder.transformer_decoder.box_eps) == (0.2, 0.1)


@pytest.mark.parametrize("most", [3, 7])
def test_detections_of_a_picture(build: Build, most: int) -> None:
    model = build("TEST.DETECTIONS_PER_IMAGE", most).eval()
    every = build("TEST.DETECTIONS_PER_IMAGE", 1000).eval()([picture()])[0]["instances"]
    found = model([picture()])[0]["instances"]
    assert len(every) == 24, "12 queries, 2 categories"
    torch.testing.assert_close(found.scores, every.scores[:most])


class Sum(nn.Module):
    """A loss whose gradient is (3, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, batch: object) -> dict[str, Tensor]:
        return {"loss": self.weight @ torch.tensor([3.0, 4.0])}


@pytest.mark.parametrize("kind", ["full_model", "norm"])
@pytest.mark.parametrize(("norm_type", "norm"), [(1.0, 7.0), (2.0, 5.0)])
def test_the_norm_that_gradients_are_clipped_by(tiny_cfg: CfgNode, kind: str, norm_type: float, norm: float) -> None:
    options = ("ENABLED", True, "CLIP_TYPE", kind, "CLIP_VALUE", 0.5, "NORM_TYPE", norm_type)
    for key, value in zip(options[::2], options[1::2]):
        tiny_cfg.merge_from_list([f"SOLVER.CLIP_GRADIENTS.{key}", value])
    model = Sum()
    step = TrainStep(model, [[{}]], torch.optim.SGD(model.parameters(), lr=1.0), tiny_cfg)
    step.iter = 0
    with EventStorage() as storage:
        step.run_step()
        assert storage.latest()["grad_norm"][0] == pytest.approx(norm)
    torch.testing.assert_close(-model.weight.detach(), torch.tensor([3.0, 4.0]) * 0.5 / norm)
