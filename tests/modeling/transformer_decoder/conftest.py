"""A memory of two pictures of different sizes, and a text, both random."""

import grounding_dino  # noqa: F401
from grounding_dino.modeling.input_projection import pyramid_of_pictures
from grounding_dino.modeling.pixel_decoder.deformable_encoder import flatten_levels
from grounding_dino.structures import Memory, TextFeatures

import pytest
import torch

DIM = 32
LEVEL_SIZES = [[(4, 6), (2, 3), (1, 2), (1, 1)], [(3, 3), (2, 2), (1, 1), (1, 1)]]  # 33 and 15 tokens


@pytest.fixture
def pictures() -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(DIM, *size, generator=generator) for size in sizes] for sizes in LEVEL_SIZES]


@pytest.fixture
def memory(pictures: list[list[torch.Tensor]]) -> Memory:
    return flatten_levels(pyramid_of_pictures(pictures))


@pytest.fixture
def second_alone(pictures: list[list[torch.Tensor]]) -> Memory:
    return flatten_levels(pyramid_of_pictures(pictures[1:]))


@pytest.fixture
def text() -> TextFeatures:
    embeddings = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(1))
    padding_mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    attention_mask, position_ids = torch.eye(5, dtype=torch.bool).expand(2, 5, 5), torch.zeros(2, 5, dtype=torch.int64)
    return TextFeatures(embeddings, padding_mask, attention_mask, position_ids)
