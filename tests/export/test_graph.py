"""What is exported finds what the model finds, in eager mode; tests/export/test_onnx_file.py runs the files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grounding_dino.export.describe import describe_model
from grounding_dino.export.differences import differences
from grounding_dino.export.example import Example
from grounding_dino.export.graph import DetectorGraph, graph_of
from grounding_dino.exported.description import ModelDescription

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

TIMM = [
    *("MODEL.BACKBONE.NAME", "TimmBackbone", "MODEL.TIMM.NAME", "resnet18"),
    *("MODEL.TIMM.OPTIONS", "{channels: [8, 16, 16, 32], layers: [1, 1, 1, 1], stem_width: 8}"),
    *("MODEL.TIMM.OUT_STRIDES", [8, 16, 32], "MODEL.PIXEL_DECODER.IN_FEATURES", ["s8", "s16", "s32"]),
]
CASES = {
    "Swin with text": ("grounding_dino", []),
    "ResNet": ("dino", []),
    "timm": ("dino", TIMM),
    "masks, padding counts": ("mask_dino", []),
    "masks, padding is masked": ("mask_dino", ["MODEL.PADDING_MASK_ON", True]),
    "learned queries": ("mask_dino", ["MODEL.QUERY_SELECTION.NAME", "LearnedQueries"]),
}


def run(graph: DetectorGraph, example: Example) -> list[torch.Tensor]:
    inputs = example.inputs(graph)
    with torch.no_grad():
        return list(graph(*(inputs[name] for name in graph.input_names)))


@pytest.mark.parametrize("case", CASES)
def test_pictures_padded_in_a_batch_have_the_results_that_the_model_gives_them_alone(
    case: str,
    family_cfg: Callable[..., CfgNode],
    spread_model: Callable[[CfgNode], nn.Module],
    parts_of: Callable[..., dict[str, Any]],
) -> None:
    family, opts = CASES[case]
    model = spread_model(family_cfg(family, *opts))
    graph = graph_of(model)
    example = Example.of_size((129, 193), count=3)
    outputs = run(graph, example)
    for row in range(3):
        alone = example.picture(row).answers(graph)
        found = differences(alone, parts_of(graph.output_names, outputs, row, alone))
        assert max(found.values()) < 1e-4, (row, found)


def test_values_on_padding_mean_nothing(
    family_cfg: Callable[..., CfgNode], spread_model: Callable[[CfgNode], nn.Module]
) -> None:
    graph = graph_of(spread_model(family_cfg("grounding_dino")))
    inputs = Example.of_size((96, 128)).inputs(graph)
    noisy = {**inputs, "images": inputs["images"].masked_fill(inputs["padding_mask"][:, None], 200.0)}
    noisy["input_ids"] = inputs["input_ids"].masked_fill(inputs["text_padding_mask"], 7)
    with torch.no_grad():
        plain, other = (graph(*each.values()) for each in (inputs, noisy))
    assert all(torch.equal(a, b) for a, b in zip(plain, other))


def test_a_picture_with_fewer_tokens_than_queries_has_a_surplus_without_scores(
    family_cfg: Callable[..., CfgNode], spread_model: Callable[[CfgNode], nn.Module]
) -> None:
    graph = graph_of(spread_model(family_cfg("grounding_dino", "MODEL.QUERY_SELECTION.NUM_QUERIES", 500)))
    example = Example.of_size((96, 128), count=1)
    logits, boxes = run(graph, example)
    alone = example.answers(graph)
    count = alone["pred_logits"].shape[1]
    assert count < logits.shape[1] == boxes.shape[1] == 500
    assert torch.isneginf(logits[:, count:]).all() and boxes.isfinite().all()
    torch.testing.assert_close(logits[:, :count], alone["pred_logits"], atol=1e-4, rtol=0)


def test_a_model_is_as_before_when_its_graph_has_run(
    family_cfg: Callable[..., CfgNode], spread_model: Callable[[CfgNode], nn.Module]
) -> None:
    graph = graph_of(spread_model(family_cfg("mask_dino")))
    example = Example.of_size((96, 128))
    before = example.answers(graph)
    run(graph, example)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), example.answers(graph).values()))


def test_a_model_that_nobody_described_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a Linear .* cannot be exported; known are .*GeneralizedDINO"):
        graph_of(nn.Linear(1, 1))


@pytest.mark.parametrize("family", ["grounding_dino", "dino", "mask_dino"])
def test_a_file_says_how_its_model_is_asked(
    family: str, family_cfg: Callable[..., CfgNode], spread_model: Callable[[CfgNode], nn.Module]
) -> None:
    cfg = family_cfg(family)
    description = describe_model(cfg, spread_model(cfg), "configs/some/model.yaml")
    assert ModelDescription.from_json(description.to_json()) == description
    assert (description.name, description.family) == ("model", family)
    assert (description.text is not None) == (family == "grounding_dino")
    assert (description.masks is not None) == description.padding_counts == (family == "mask_dino")
