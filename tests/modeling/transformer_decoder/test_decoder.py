"""The decoder: refinement, padding, denoising queries in front, checkpointing."""

import dataclasses

import grounding_dino.modeling  # noqa: F401
from grounding_dino.layers.box_ops import inverse_sigmoid
from grounding_dino.modeling.transformer_decoder import DINODecoder, build_transformer_decoder
from grounding_dino.modeling.transformer_decoder.decoder import prepend_denoising
from grounding_dino.modeling.transformer_decoder.denoising import denoising_attention_mask
from grounding_dino.structures import Memory, Queries, TextFeatures

import pytest
import torch
from detectron2.config import CfgNode


def build(cfg: CfgNode) -> DINODecoder:
    torch.manual_seed(0)
    module = build_transformer_decoder(cfg)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "box_head" in name or "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                parameter.normal_(std=0.3)
    return module.eval()


@pytest.fixture
def decoder(tiny_cfg: CfgNode) -> DINODecoder:
    return build(tiny_cfg)


@pytest.fixture
def queries() -> Queries:
    generator = torch.Generator().manual_seed(2)
    content, boxes = torch.randn(2, 6, 32, generator=generator), torch.rand(2, 6, 4, generator=generator)
    return Queries(content, boxes * 0.8 + 0.1)


def row(structure, i: int):
    """Picture `i` of a structure; what does not have the batch's length 2 is left as it is."""
    fields = {f.name: getattr(structure, f.name) for f in dataclasses.fields(structure)}
    chosen = {k: v[i : i + 1] for k, v in fields.items() if isinstance(v, torch.Tensor) and len(v) == 2}
    return dataclasses.replace(structure, **chosen)


@torch.no_grad()
def test_boxes_are_refined_layer_by_layer(
    decoder: DINODecoder, queries: Queries, memory: Memory, text: TextFeatures
) -> None:
    states, references = decoder.refine(queries, memory, text)
    output = decoder(queries, memory, text)
    assert len(states) == 2 and len(references) == 3 and len(output.layers) == 2
    assert torch.equal(references[0], queries.reference_points)
    for i, prediction in enumerate(output.layers):
        delta = decoder.box_head(i)(states[i])
        expected = (delta + inverse_sigmoid(references[i], 1e-3)).sigmoid()
        torch.testing.assert_close(prediction.pred_boxes, expected)
        torch.testing.assert_close(prediction.pred_logits, decoder.class_heads[i](states[i], text))
    assert output.encoder is None and output.denoising is None


@torch.no_grad()
def test_the_two_eps(tiny_cfg: CfgNode, queries: Queries, memory: Memory, text: TextFeatures) -> None:
    """A reference on the border: the refined one and the predicted box leave it by their own eps."""
    border = dataclasses.replace(queries, reference_points=torch.zeros(2, 6, 4))
    decoder = build(tiny_cfg)
    for head in decoder.box_heads:
        torch.nn.init.zeros_(head.layers[-1].weight)
        torch.nn.init.zeros_(head.layers[-1].bias)
    decoder.reference_eps, decoder.box_eps = 1e-2, 1e-4
    _, references = decoder.refine(border, memory, text)
    torch.testing.assert_close(references[1], torch.full((2, 6, 4), 1e-2 / (1 + 1e-2)))
    boxes = decoder(border, memory, text).layers[0].pred_boxes
    torch.testing.assert_close(boxes, torch.full((2, 6, 4), 1e-4 / (1 + 1e-4)))


@torch.no_grad()
def test_last_layer_alone(decoder: DINODecoder, queries: Queries, memory: Memory, text: TextFeatures) -> None:
    every, last = decoder(queries, memory, text), decoder(queries, memory, text, all_layers=False)
    assert len(last.layers) == 1
    assert torch.equal(last.layers[0].pred_logits, every.layers[-1].pred_logits)
    assert torch.equal(last.layers[0].pred_boxes, every.layers[-1].pred_boxes)


def test_gradients_flow_one_layer_back(
    decoder: DINODecoder, queries: Queries, memory: Memory, text: TextFeatures
) -> None:
    """Look forward twice: a box reaches the change made by the layer before, and what came before that not."""
    start = queries.reference_points.clone().requires_grad_()
    output = decoder(dataclasses.replace(queries, reference_points=start), memory, text)
    (gradient,) = torch.autograd.grad(output.layers[0].pred_boxes.sum(), start, retain_graph=True)
    assert gradient.abs().sum() > 0
    _, references = decoder.refine(queries, memory, text)
    assert references[1].requires_grad
    assert torch.autograd.grad(references[2].sum(), references[1], allow_unused=True) == (None,)


@torch.no_grad()
def test_padding_changes_nothing(
    decoder: DINODecoder, queries: Queries, memory: Memory, second_alone: Memory, text: TextFeatures
) -> None:
    both = decoder(queries, memory, text).layers[-1]
    alone = decoder(row(queries, 1), second_alone, row(text, 1)).layers[-1]
    torch.testing.assert_close(both.pred_boxes[1], alone.pred_boxes[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both.pred_logits[1], alone.pred_logits[0], atol=1e-4, rtol=1e-4)
    decoder.padded_positions = True  # the published code embeds boxes relative to the padded batch
    published = decoder(queries, memory, text).layers[-1]
    assert (published.pred_boxes[1] - alone.pred_boxes[0]).abs().max() > 1e-3


@torch.no_grad()
def test_padded_queries_are_not_seen(
    decoder: DINODecoder, queries: Queries, memory: Memory, text: TextFeatures
) -> None:
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[1, 4:] = True
    padded = decoder(dataclasses.replace(queries, padding_mask=mask), memory, text).layers[-1]
    fewer = Queries(queries.content[1:, :4], queries.reference_points[1:, :4])
    alone = decoder(fewer, row(memory, 1), row(text, 1)).layers[-1]
    torch.testing.assert_close(padded.pred_boxes[1, :4], alone.pred_boxes[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded.pred_logits[1, :4], alone.pred_logits[0], atol=1e-4, rtol=1e-4)
    assert (padded.pred_logits[1, 4:] == -torch.inf).all() and padded.pred_boxes.isfinite().all()


@torch.no_grad()
def test_denoising_queries_in_front(decoder: DINODecoder, queries: Queries, memory: Memory, text: TextFeatures) -> None:
    """They do not touch the matching queries, and a group does not touch another."""
    plain = decoder(queries, memory, text).layers[-1]
    mask = denoising_attention_mask(2, 2, 6, torch.device("cpu"))
    first, second = (torch.randn(2, 4, 32) for _ in range(2))
    second[:, :2] = first[:, :2]  # the second group differs
    outputs = []
    for content in (first, second):
        with_noise = prepend_denoising(queries, content, torch.full((2, 4, 4), 0.4), mask)
        assert with_noise.num_denoising == 4
        outputs.append(decoder(with_noise, memory, text))
    for output in outputs:
        assert output.layers[-1].pred_boxes.shape == (2, 6, 4) and output.denoising[-1].pred_boxes.shape == (2, 4, 4)
        torch.testing.assert_close(output.layers[-1].pred_boxes, plain.pred_boxes, atol=1e-6, rtol=0)
    noised = [output.denoising[-1].pred_boxes for output in outputs]
    assert torch.equal(noised[0][:, :2], noised[1][:, :2]) and (noised[0][:, 2:] - noised[1][:, 2:]).abs().max() > 1e-3


def test_denoising_and_padding_exclude_each_other(
    decoder: DINODecoder, queries: Queries, memory: Memory, text: TextFeatures
) -> None:
    mask = torch.ones(2, 6, dtype=torch.bool)
    both = dataclasses.replace(queries, padding_mask=mask, attention_mask=torch.ones(6, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="denoising parts and padding at once"):
        decoder(both, memory, text)


def test_checkpointing_changes_no_gradient(tiny_cfg: CfgNode, queries: Queries, memory: Memory, text) -> None:
    gradients = []
    for checkpointing in (False, True):
        tiny_cfg.MODEL.TRANSFORMER_DECODER.ACTIVATION_CHECKPOINTING_ON = checkpointing
        decoder = build(tiny_cfg).train()
        output = decoder(queries, memory, text)
        sum(p.pred_boxes.sum() + p.pred_logits[..., :3].square().mean() for p in output.layers).backward()
        gradients.append([p.grad for p in decoder.parameters()])
    torch.testing.assert_close(*gradients)


def test_shared_and_separate_heads(tiny_cfg: CfgNode) -> None:
    shared = build(tiny_cfg)
    assert len(shared.box_heads) == 1 and shared.box_head(0) is shared.box_head(1)
    tiny_cfg.MODEL.TRANSFORMER_DECODER.SHARED_BOX_HEAD_ON = False
    separate = build(tiny_cfg)
    assert len(separate.box_heads) == 2 and separate.box_head(0) is not separate.box_head(1)
    assert separate.class_heads[0].bias is not separate.class_heads[1].bias


def test_without_text(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.TEXT_ENCODER.NAME = ""
    assert not [name for name in build_transformer_decoder(tiny_cfg).state_dict() if "text" in name]
