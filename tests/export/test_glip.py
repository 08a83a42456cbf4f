"""GLIP as a graph: the model's predictions, whatever lies on the padding. Writing it as a file takes minutes."""

from __future__ import annotations

from grounding_dino.export.describe import describe_model
from grounding_dino.export.example import Example
from grounding_dino.export.graph import DetectorGraph, graph_of

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn


@pytest.fixture
def graph(tiny_glip: nn.Module) -> DetectorGraph:
    return graph_of(tiny_glip)


@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_a_graph_answers_as_the_model(graph: DetectorGraph, size: tuple[int, int]) -> None:
    example = Example.of_size(size, count=1)
    inputs = example.inputs(graph)
    assert inputs["images"].shape[2:] == (64, 96)  # padded to multiples of 32
    with torch.no_grad():
        found = dict(zip(graph.output_names, graph(*(inputs[name] for name in graph.input_names))))
    for name, expected in example.answers(graph).items():
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-5)


def test_what_lies_on_the_padding_does_not_count(graph: DetectorGraph) -> None:
    inputs = Example.of_size((50, 70), count=1).inputs(graph)
    with torch.no_grad():
        clean = graph(*(inputs[name] for name in graph.input_names))
        inputs["images"] = torch.where(inputs["padding_mask"][:, None], 1000.0, inputs["images"])
        soiled = graph(*(inputs[name] for name in graph.input_names))
    for one, other in zip(clean, soiled):
        torch.testing.assert_close(one, other)


def test_learned_vectors_of_a_prompt_are_added(tiny_glip: nn.Module) -> None:
    example = Example.of_size((64, 64), count=1)
    before = example.answers(graph_of(tiny_glip))
    tiny_glip.prompt_vectors = nn.Embedding(64, 16)
    graph = graph_of(tiny_glip)
    inputs = example.inputs(graph)
    with torch.no_grad():
        found = graph(*(inputs[name] for name in graph.input_names))
    after = example.answers(graph)
    torch.testing.assert_close(found[0], after["pred_logits"], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after["pred_logits"], before["pred_logits"])


def test_the_description_says_how_places_are_read(tiny_glip: nn.Module, tiny_glip_cfg: CfgNode) -> None:
    description = describe_model(tiny_glip_cfg, tiny_glip, "glip_t_c.yaml")
    assert (description.name, description.family, description.masks) == ("glip_t_c", "glip", None)
    assert description.padding_counts and description.size_divisibility == 32
    assert description.dense is not None and description.dense.strides == (8, 16, 32, 64, 128)
    assert description.text is not None and not description.text.sub_sentence
