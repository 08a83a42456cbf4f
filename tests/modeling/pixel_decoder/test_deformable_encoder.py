"""The encoder: padding of pictures and of text changes nothing, levels lie where they should."""

import dataclasses

import grounding_dino.modeling  # noqa: F401
from grounding_dino.layers import blocks
from grounding_dino.modeling.input_projection import pyramid_of_pictures
from grounding_dino.modeling.pixel_decoder import build_pixel_decoder
from grounding_dino.modeling.pixel_decoder.deformable_encoder import (
    DeformableEncoder,
    cell_centres,
    encoder_reference_points,
    flatten_levels,
)
from grounding_dino.modeling.pixel_decoder.text_fusion import text_position_embedding
from grounding_dino.structures import TextFeatures
from grounding_dino.text.batch import collate_prompts
from grounding_dino.text.prompt import build_category_prompts
from grounding_dino.text.tokenizer import build_tokenizer

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor

DIM = 32
SIZES = {"wide": [(3, 8), (2, 4), (1, 2), (1, 1)], "tall": [(7, 4), (4, 2), (2, 1), (1, 1)]}


@pytest.fixture
def encoder(tiny_cfg: CfgNode) -> DeformableEncoder:
    torch.manual_seed(0)
    module = build_pixel_decoder(tiny_cfg).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                parameter.normal_(std=0.3)
    return module


def picture(name: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(name) + ord(name[0]))
    return [torch.randn(DIM, *size, generator=generator) for size in SIZES[name]]


def text(*categories: list[str]) -> TextFeatures:
    """Random features of prompts; a prompt's own do not depend on the others."""
    prompts = [build_category_prompts(names, build_tokenizer())[0] for names in categories]
    tokens = collate_prompts(prompts)
    embeddings = torch.randn(*tokens.input_ids.shape, DIM)  # padding is noise, which must not matter
    for row, prompt in zip(embeddings, prompts):
        generator = torch.Generator().manual_seed(len(prompt))
        row[: len(prompt)] = torch.randn(len(prompt), DIM, generator=generator)
    return TextFeatures(embeddings, tokens.padding_mask, tokens.attention_mask, tokens.position_ids)


@torch.no_grad()
def test_padding_changes_no_valid_token(encoder: DeformableEncoder) -> None:
    names, prompts = ["wide", "tall", "wide"], [["cat"], ["red dog", "cat", "bus"], ["dog", "zebra"]]
    memory, encoded = encoder(pyramid_of_pictures([picture(n) for n in names]), text(*prompts))
    assert memory.padding_mask.any() and encoded.padding_mask.any()
    for i, (name, prompt) in enumerate(zip(names, prompts)):
        alone, text_alone = encoder(pyramid_of_pictures([picture(name)]), text(prompt))
        assert not alone.padding_mask.any()
        valid, length = ~memory.padding_mask[i], text_alone.embeddings.shape[1]
        torch.testing.assert_close(memory.features[i][valid], alone.features[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(encoded.embeddings[i, :length], text_alone.embeddings[0], atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("names", [["wide"], ["wide", "wide"], ["tall", "wide"]], ids=["one", "equal", "padded"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_blocks_of_tokens_change_nothing(
    encoder: DeformableEncoder, names: list[str], autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = pyramid_of_pictures([picture(name) for name in names]), text(*[["cat"], ["a dog"]][: len(names)])
    results = []
    for tokens in (10**6, 5):
        monkeypatch.setattr(blocks, "TOKENS_PER_THREAD", tokens)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            memory, encoded = encoder(*inputs)
        results.append((memory.features[~memory.padding_mask], encoded.embeddings[~encoded.padding_mask]))
    tolerance = 0.1 if autocast else 2e-5
    torch.testing.assert_close(results[1], results[0], atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_known_absence_of_padding_changes_nothing(encoder: DeformableEncoder) -> None:
    pyramid = pyramid_of_pictures([picture("wide")])
    assert not pyramid.has_padding
    known, _ = encoder(pyramid, text(["cat"]))
    unknown, _ = encoder(dataclasses.replace(pyramid, has_padding=True), text(["cat"]))
    torch.testing.assert_close(known.features, unknown.features, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_image_and_text_inform_each_other(encoder: DeformableEncoder) -> None:
    first, first_text = encoder(pyramid_of_pictures([picture("wide")]), text(["cat"]))
    other, _ = encoder(pyramid_of_pictures([picture("wide")]), text(["a dog"]))
    _, other_text = encoder(pyramid_of_pictures([picture("tall")]), text(["cat"]))
    assert (first.features - other.features).abs().max() > 1e-3
    assert (first_text.embeddings - other_text.embeddings).abs().max() > 1e-3


def test_phrases_do_not_see_each_other_in_the_text_layer(encoder: DeformableEncoder) -> None:
    features = text(["cat", "dog"])
    changed = features.embeddings.clone()
    changed[:, 3] += 1  # [CLS] cat . dog . [SEP]
    place = features.attention_mask, text_position_embedding(features)
    with torch.no_grad():
        before, after = (encoder.layers[0].text_layer(x, *place) for x in (features.embeddings, changed))
    difference = (after - before).abs().amax(-1)[0]
    assert (difference > 0).tolist() == [False, False, False, True, True, False]


def test_without_text(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.TEXT_ENCODER.NAME = ""
    encoder = build_pixel_decoder(tiny_cfg)
    memory, encoded = encoder(pyramid_of_pictures([picture("wide")]), None)
    assert encoded is None and memory.features.isfinite().all()
    assert not [name for name in encoder.state_dict() if "fusion" in name or "text" in name]


def test_checkpointing_changes_no_gradient(tiny_cfg: CfgNode) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        tiny_cfg.MODEL.PIXEL_DECODER.ACTIVATION_CHECKPOINTING_ON = checkpointing
        encoder = build_pixel_decoder(tiny_cfg).train()
        memory, encoded = encoder(pyramid_of_pictures([picture("wide")]), text(["cat"]))
        (memory.features.square().mean() + encoded.embeddings.square().mean()).backward()
        gradients.append([p.grad for p in encoder.parameters()])
    torch.testing.assert_close(*gradients)


def test_layout_of_levels() -> None:
    memory = flatten_levels(pyramid_of_pictures([picture("wide"), picture("tall")]))
    assert memory.spatial_shapes.tolist() == [[7, 8], [4, 4], [2, 2], [1, 1]]
    assert memory.level_start_index.tolist() == [0, 56, 72, 76]
    wide = torch.tensor([[1, 3 / 7], [1, 2 / 4], [1, 1 / 2], [1, 1]])
    torch.testing.assert_close(memory.valid_ratios[0], wide)
    second_row = memory.features[0, 8]
    assert torch.equal(second_row, picture("wide")[0][:, 1, 0])


def test_reference_points_are_cell_centres() -> None:
    memory = flatten_levels(pyramid_of_pictures([picture("wide"), picture("tall")]))
    points = encoder_reference_points(memory)  # (B, S, L, 2)
    for i, name in enumerate(SIZES):
        for level, (height, width) in enumerate(SIZES[name]):
            token = int(memory.level_start_index[level])
            x, y = points[i, token, level].tolist()  # the first cell, relative to the padded map of its own level
            assert x * memory.spatial_shapes[level, 1] == pytest.approx(0.5)
            assert y * memory.spatial_shapes[level, 0] == pytest.approx(0.5)
            x, y = points[i, token, 0].tolist()  # and to that of the finest: the same share of the picture
            assert x * memory.spatial_shapes[0, 1] == pytest.approx(0.5 / width * SIZES[name][0][1])
            assert y * memory.spatial_shapes[0, 0] == pytest.approx(0.5 / height * SIZES[name][0][0])


def test_cell_centres_are_shares_of_the_valid_part() -> None:
    centres = cell_centres(2, 4, torch.tensor([[0.5, 1.0]]))
    expected = [[0.25, 0.25], [0.75, 0.25], [1.25, 0.25], [1.75, 0.25]]
    torch.testing.assert_close(centres[0, :4], torch.tensor(expected))
