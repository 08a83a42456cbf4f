"""Query selection: proposals, ranking, padding, pictures with few tokens."""

import dataclasses
import math

import grounding_dino.modeling  # noqa: F401
from grounding_dino.modeling.transformer_decoder import QuerySelection
from grounding_dino.modeling.transformer_decoder.decoder import DINODecoder
from grounding_dino.modeling.transformer_decoder.query_selection import token_proposals
from grounding_dino.structures import Memory, TextFeatures

import pytest
import torch
from detectron2.config import CfgNode


@pytest.fixture
def selection(tiny_cfg: CfgNode) -> QuerySelection:
    torch.manual_seed(0)
    module = QuerySelection(tiny_cfg).eval()
    torch.nn.init.normal_(module.box_head.layers[-1].weight, std=0.3)
    return module


@pytest.fixture
def decoder(tiny_cfg: CfgNode) -> DINODecoder:
    return DINODecoder(tiny_cfg)


def row(text: TextFeatures, i: int) -> TextFeatures:
    parts = (getattr(text, field.name) for field in dataclasses.fields(text))
    return TextFeatures(*(part[i : i + 1] if isinstance(part, torch.Tensor) else part for part in parts))


def test_proposals(memory: Memory) -> None:
    proposals, invalid = token_proposals(memory)
    assert torch.equal(invalid[0] | memory.padding_mask[0], invalid[0])
    # token (row 1, column 2) of the first level of the second picture, which has 3 x 3 cells there
    token = 1 * 6 + 2
    expected = torch.tensor([2.5 / 3, 1.5 / 3, 0.05, 0.05])
    torch.testing.assert_close(proposals[1, token].sigmoid(), expected)
    last = int(memory.level_start_index[3])
    torch.testing.assert_close(proposals[1, last].sigmoid(), torch.tensor([0.5, 0.5, 0.4, 0.4]))
    assert (proposals[invalid] == math.inf).all() and proposals[~invalid].isfinite().all()
    assert torch.equal(invalid, memory.padding_mask)  # maps so small have no cell within 1 % of the border


def test_proposals_within_one_percent_of_the_border_are_invalid(memory: Memory) -> None:
    wide = dataclasses.replace(
        memory,
        features=torch.zeros(1, 200, 1),
        sizes=((1, 200),),
        padding_mask=torch.zeros(1, 200, dtype=torch.bool),
        valid_ratios=torch.ones(1, 1, 2),
    )
    _, invalid = token_proposals(wide)
    assert invalid[0].nonzero().flatten().tolist() == [0, 1, 198, 199]  # centres 0.0025, 0.0075, ...


@torch.no_grad()
def test_best_tokens_first(selection: QuerySelection, decoder: DINODecoder, memory: Memory, text: TextFeatures) -> None:
    queries, predictions = selection(memory, text, decoder)
    tokens = selection.norm(selection.projection(memory.features.masked_fill(memory.padding_mask[..., None], 0.0)))
    scores = selection.class_head(tokens, text).amax(-1).masked_fill(memory.padding_mask, -math.inf)
    expected = scores.topk(12).indices
    assert torch.equal(predictions.pred_logits.amax(-1), scores.gather(1, expected))
    assert predictions.pred_boxes.shape == queries.reference_points.shape == (2, 12, 4)
    assert torch.equal(queries.content, selection.content.weight.expand(2, -1, -1))
    assert queries.padding_mask is None and queries.attention_mask is None and queries.num_denoising == 0
    proposals = token_proposals(memory)[0][0, expected[0, 0]]
    box = (selection.box_head(tokens[0, expected[0, 0]]) + proposals).sigmoid()
    torch.testing.assert_close(queries.reference_points[0, 0], box)


def test_references_carry_no_gradient(
    selection: QuerySelection, decoder: DINODecoder, memory: Memory, text: TextFeatures
) -> None:
    queries, predictions = selection.train()(memory, text, decoder)
    assert not queries.reference_points.requires_grad and predictions.pred_boxes.requires_grad


@torch.no_grad()
def test_fewer_tokens_than_queries(
    selection: QuerySelection, decoder: DINODecoder, memory: Memory, second_alone: Memory, text: TextFeatures
) -> None:
    """33 and 15 tokens, 20 queries: alone the second picture gets 15, in the batch its other 5 are padding."""
    selection.num_queries = 20
    selection.content = torch.nn.Embedding(20, 32)
    queries, _ = selection(memory, text, decoder)
    assert queries.padding_mask.sum(1).tolist() == [0, 5] and queries.padding_mask[1, 15:].all()
    assert queries.reference_points.isfinite().all()
    alone, _ = selection(second_alone, row(text, 1), decoder)
    assert alone.padding_mask is None and alone.content.shape[1] == 15
    torch.testing.assert_close(queries.reference_points[1, :15], alone.reference_points[0])
    assert torch.equal(queries.content[1, :15], alone.content[0])


@torch.no_grad()
def test_padding_may_be_chosen_where_the_published_code_does(
    selection: QuerySelection, memory: Memory, text: TextFeatures
) -> None:
    scores = torch.zeros_like(memory.padding_mask, dtype=torch.float32)
    scores[memory.padding_mask] = 1.0
    padded_first, mask = selection.train().select(scores, memory)
    assert mask is None and memory.padding_mask[1][padded_first[1]].all()
    selection.eval().padding_selectable = True
    assert torch.equal(selection.select(scores, memory)[0], padded_first)
    selection.padding_selectable = False
    assert not memory.padding_mask.gather(1, selection.select(scores, memory)[0]).any()
