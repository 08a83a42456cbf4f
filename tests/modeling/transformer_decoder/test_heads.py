"""Token contrast with the three scales, and the box head's start."""

import math

import grounding_dino.modeling  # noqa: F401
from grounding_dino.modeling.transformer_decoder.heads import TokenContrast, build_box_head, build_class_head
from grounding_dino.structures import TextFeatures

import pytest
import torch
from detectron2.config import CfgNode

DIM = 16


def text(num_tokens: int = 3, num_padded: int = 1) -> TextFeatures:
    length = num_tokens + num_padded
    padding_mask = (torch.arange(length) >= num_tokens)[None].expand(2, -1)
    allowed, positions = torch.eye(length, dtype=torch.bool)[None], torch.zeros(2, length, dtype=torch.int64)
    return TextFeatures(torch.randn(2, length, DIM), padding_mask, allowed, positions)


@pytest.mark.parametrize("scale, factor", [("none", 1.0), ("sqrt_dim", 1 / 4), ("learned", math.exp(0.3))])
@pytest.mark.parametrize("bias", [False, True])
def test_logits(scale: str, factor: float, bias: bool) -> None:
    torch.manual_seed(0)
    head, tokens, queries = TokenContrast(DIM, scale, bias), text(), torch.randn(2, 5, DIM)
    if scale == "learned":
        assert head.log_scale == 0
        torch.nn.init.constant_(head.log_scale, 0.3)
    logits = head(queries, tokens)
    dots = torch.einsum("bqc,btc->bqt", queries, tokens.embeddings)
    expected = dots[..., :3] * factor - (math.log(99) if bias else 0)
    torch.testing.assert_close(logits[..., :3], expected)
    assert (logits[..., 3] == -math.inf).all()
    names = {"log_scale"} if scale == "learned" else set()
    names |= {"bias"} if bias else set()
    assert set(head.state_dict()) == names


def test_logits_are_float32_in_half_precision() -> None:
    torch.manual_seed(0)
    head, tokens, queries = TokenContrast(DIM, "sqrt_dim", True), text(), torch.randn(2, 5, DIM)
    expected = head(queries, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(queries, tokens), expected)
    assert head.bfloat16()(queries.bfloat16(), tokens).dtype == torch.float32


def test_bias_starts_at_one_percent() -> None:
    logits = TokenContrast(DIM, "none", True)(torch.zeros(2, 1, DIM), text())
    assert logits[0, 0, 0].sigmoid().item() == pytest.approx(0.01)


def test_padding_gives_no_gradient_that_is_not_a_number() -> None:
    head, tokens = TokenContrast(DIM, "learned", True), text()
    logits = head(torch.randn(2, 5, DIM), tokens)
    logits.masked_fill(tokens.padding_mask[:, None], 0.0).sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_box_head_starts_at_no_change() -> None:
    assert not build_box_head(DIM)(torch.randn(3, DIM)).any()


def test_class_head_by_name(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.CLASS_HEAD.SCALE = "learned"
    assert set(build_class_head(tiny_cfg).state_dict()) == {"bias", "log_scale"}
    tiny_cfg.MODEL.CLASS_HEAD.SCALE = "big"
    with pytest.raises(ValueError, match=r"SCALE 'big'; choose from \['learned', 'none', 'sqrt_dim'\]"):
        build_class_head(tiny_cfg)
    tiny_cfg.MODEL.CLASS_HEAD.NAME = "Softmax"
    with pytest.raises(ValueError, match=r"NAME 'Softmax'; choose from \[.*'Linear', 'TokenContrast'\]"):
        build_class_head(tiny_cfg)
