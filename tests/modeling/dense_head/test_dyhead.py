"""The tower: what order its parts work in, and what they see."""

import copy
from collections import Counter

import grounding_dino.modeling  # noqa: F401
from grounding_dino.modeling.dense_head.dyhead import DyHead
from grounding_dino.structures import TextFeatures

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor

SIZES = [(5, 7), (3, 4), (2, 2), (1, 1)]
TOKENS = 6


@pytest.fixture
def cfg(tiny_glip_cfg: CfgNode) -> CfgNode:
    tiny_glip_cfg.MODEL.DENSE_HEAD.NUM_BLOCKS = 2
    return tiny_glip_cfg


def build(cfg: CfgNode) -> DyHead:
    torch.manual_seed(0)
    tower = DyHead(cfg)
    with torch.no_grad():
        for block in tower.blocks:
            block.convolution.offset.weight.normal_(std=0.05)
    return tower


def inputs(cfg: CfgNode, lengths: tuple[int, ...] = (6, 4)) -> tuple[list[Tensor], TextFeatures]:
    """Maps of two pictures, and texts of which the second has padding."""
    torch.manual_seed(1)
    maps = [torch.randn(len(lengths), cfg.MODEL.EMBED_DIM, h, w) for h, w in SIZES]
    padding = torch.arange(TOKENS) >= torch.tensor(lengths)[:, None]
    attention = (~padding[:, None] & ~padding[..., None]) | torch.eye(TOKENS, dtype=torch.bool)
    tokens = torch.randn(len(lengths), TOKENS, cfg.MODEL.TEXT_ENCODER.HIDDEN_SIZE)
    return maps, TextFeatures(tokens, padding, attention, torch.arange(TOKENS).expand(len(lengths), -1))


def test_fusion_then_text_layer_then_convolution(cfg: CfgNode) -> None:
    """All levels meet the text at once; the convolution sees maps alone."""
    tower, (maps, text) = build(cfg).eval(), inputs(cfg)
    tokens, levels = text.embeddings, maps
    for block in tower.blocks:
        rows = torch.cat([level.flatten(2) for level in levels], dim=2).mT
        image, tokens = block.fusion(rows, tokens, None, text.padding_mask)
        tokens = block.text_layer(tokens, text.attention_mask)
        first, fused = 0, []
        for h, w in SIZES:
            fused.append(image[:, first : first + h * w].mT.reshape(2, -1, h, w))
            first += h * w
        levels = block.convolution(fused)
    found, found_tokens = tower(maps, text)
    torch.testing.assert_close(found_tokens, tokens)
    for ours, expected in zip(found, levels, strict=True):
        torch.testing.assert_close(ours, expected)


def test_text_layer_is_one_of_bert(cfg: CfgNode) -> None:
    """Post-norm, GELU, epsilon 1e-12."""
    layer = build(cfg).eval().blocks[0].text_layer
    _, text = inputs(cfg)
    x = text.embeddings
    x = torch.nn.functional.layer_norm(
        x + layer.self_attention(x, x, x, text.attention_mask[:, None]), x.shape[-1:], eps=1e-12
    )
    inner = torch.nn.functional.gelu(layer.ffn[0](x))
    expected = torch.nn.functional.layer_norm(x + layer.ffn[2](inner), x.shape[-1:], eps=1e-12)
    torch.testing.assert_close(layer(text.embeddings, text.attention_mask), expected)


def test_padded_tokens_change_nothing(cfg: CfgNode) -> None:
    tower, (maps, text) = build(cfg).eval(), inputs(cfg)
    embeddings = text.embeddings.clone()
    embeddings[text.padding_mask] = 100.0
    other = TextFeatures(embeddings, text.padding_mask, text.attention_mask, text.position_ids)
    (levels, tokens), (levels2, tokens2) = tower(maps, text), tower(maps, other)
    for one, two in zip(levels, levels2):
        torch.testing.assert_close(one, two)
    torch.testing.assert_close(tokens[~text.padding_mask], tokens2[~text.padding_mask])


def test_without_fusion_text_is_handed_on(cfg: CfgNode) -> None:
    cfg.MODEL.DENSE_HEAD.TEXT_FUSION.ENABLED_ON = False
    tower, (maps, text) = build(cfg), inputs(cfg)
    assert all(name.split(".")[2] == "convolution" for name in tower.state_dict())
    levels, tokens = tower(maps, text)
    assert tokens is text.embeddings
    expected = maps
    for block in tower.blocks:
        expected = block.convolution(expected)
    assert all(torch.equal(one, two) for one, two in zip(levels, expected))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_gradients_are_equal(cfg: CfgNode, dropout: float) -> None:
    """Also through random parts, which are drawn again alike."""
    cfg.MODEL.TEXT_ENCODER.DROPOUT = cfg.MODEL.DENSE_HEAD.TEXT_FUSION.DROPOUT = dropout
    plain = build(cfg).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.activation_checkpointing = True
    gradients = []
    for tower in (plain, checkpointed):
        maps, text = inputs(cfg)
        leaves = [m.requires_grad_() for m in maps]
        text.embeddings.requires_grad_()
        torch.manual_seed(2)
        levels, tokens = tower(leaves, text)
        (sum(level.square().sum() for level in levels) + tokens.square().sum()).backward()
        parameters = dict(tower.named_parameters())
        assert [name for name, p in parameters.items() if p.grad is None] == []
        gradients.append([*(p.grad for p in parameters.values()), *(m.grad for m in leaves), text.embeddings.grad])
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


def test_the_configuration_switches_checkpointing_on(cfg: CfgNode) -> None:
    """In training alone."""
    cfg.MODEL.DENSE_HEAD.ACTIVATION_CHECKPOINTING_ON = True
    stored = []
    for train in (True, False):
        tower, (maps, text), kept = build(cfg).train(train), inputs(cfg), Counter[str]()

        def keep(x: Tensor, kept: Counter[str] = kept) -> Tensor:
            kept["numbers"] += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            tower(maps, text)
        stored.append(kept["numbers"])
    assert stored[0] < stored[1] / 10  # the inputs of blocks alone


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(cfg: CfgNode, dtype: torch.dtype) -> None:
    tower, (maps, text) = build(cfg).eval(), inputs(cfg)
    exact, exact_tokens = tower(maps, text)
    with torch.autocast("cpu", dtype=dtype):
        levels, tokens = tower(maps, text)
    for ours, expected in zip([*levels, tokens], [*exact, exact_tokens]):
        torch.testing.assert_close(ours.float(), expected, atol=16 * torch.finfo(dtype).eps, rtol=0)
