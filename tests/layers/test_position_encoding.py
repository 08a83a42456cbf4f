"""Sine embeddings against the formula, one number at a time."""

import math

import grounding_dino  # noqa: F401
from grounding_dino.layers.position_encoding import box_position_embedding, image_position_embedding, sine_embedding

import torch


def loop(position: float, dim: int, temperature: float) -> list[float]:
    values = []
    for channel in range(dim):
        angle = position * 2 * math.pi / temperature ** (2 * (channel // 2) / dim)
        values.append(math.sin(angle) if channel % 2 == 0 else math.cos(angle))
    return values


def test_sine_embedding_equals_loop() -> None:
    positions = torch.tensor([[0.0, 0.25, 1.0], [0.5, 3.0, -0.1]], dtype=torch.float64)
    embedded = sine_embedding(positions[..., None], 8, 20.0)
    assert embedded.shape == (2, 3, 8)
    expected = torch.tensor([[loop(x, 8, 20.0) for x in row] for row in positions.tolist()], dtype=torch.float64)
    torch.testing.assert_close(embedded, expected)


def test_token_positions_are_counted_in_full_precision() -> None:
    ids = torch.tensor([[0, 1, 200]])
    expected = torch.tensor([[loop(float(x), 16, 10000.0) for x in (0, 1, 200)]])
    torch.testing.assert_close(sine_embedding(ids[..., None], 16), expected, atol=2e-4, rtol=0)
    assert sine_embedding(torch.zeros(1, 1, dtype=torch.bfloat16), 4).dtype == torch.float32


def test_image_positions_count_valid_cells_from_one() -> None:
    mask = torch.ones(1, 4, 5, dtype=torch.bool)
    mask[:, :2, :3] = False  # a picture of 2 x 3 cells in a map of 4 x 5
    embedded = image_position_embedding(mask, 12, 20.0)
    assert embedded.shape == (1, 4, 5, 12)
    for row in range(2):
        for column in range(3):
            y, x = loop((row + 1) / 2, 6, 20.0), loop((column + 1) / 3, 6, 20.0)
            torch.testing.assert_close(embedded[0, row, column], torch.tensor(y + x), atol=2e-5, rtol=0)


def test_image_positions_do_not_depend_on_padding() -> None:
    mask = torch.ones(1, 6, 9, dtype=torch.bool)
    mask[:, :5, :4] = False
    alone = image_position_embedding(torch.zeros(1, 5, 4, dtype=torch.bool), 16, 20.0)
    assert torch.equal(image_position_embedding(mask, 16, 20.0)[:, :5, :4], alone)


def test_box_positions_are_ordered_y_x_w_h() -> None:
    box = (0.1, 0.4, 0.7, 0.9)
    x, y, w, h = (loop(value, 8, 10000.0) for value in box)
    torch.testing.assert_close(box_position_embedding(torch.tensor(box), 8), torch.tensor(y + x + w + h))
