"""Fusion as a scaled residual on normed tokens."""

import grounding_dino  # noqa: F401
from grounding_dino.modeling.pixel_decoder.text_fusion import TextFusionLayer

import torch


def test_residual_on_normed_tokens() -> None:
    torch.manual_seed(0)
    layer = TextFusionLayer(embed_dim=8, attention_dim=16, num_heads=2, init_scale=0.5)
    image, text, padded = torch.randn(1, 6, 8), torch.randn(1, 3, 8), torch.zeros(1, 3, dtype=torch.bool)
    new_image, new_text = layer(image, text, None, padded)
    normed = layer.norm_image(image), layer.norm_text(text)
    deltas = layer.attention(*normed, None, padded)
    torch.testing.assert_close(new_image, normed[0] + 0.5 * deltas[0])
    torch.testing.assert_close(new_text, normed[1] + 0.5 * deltas[1])


def test_drop_path_leaves_whole_pictures_unfused_in_training() -> None:
    torch.manual_seed(0)
    layer = TextFusionLayer(embed_dim=8, attention_dim=16, num_heads=2, init_scale=0.5, drop_path=0.5)
    image, text = torch.randn(64, 2, 8), torch.randn(64, 2, 8)
    padded = torch.zeros(64, 2, dtype=torch.bool)
    dropped = (layer(image, text, None, padded)[0] == layer.norm_image(image)).flatten(1)
    assert (dropped.all(1) | ~dropped.any(1)).all() and 16 < dropped.all(1).sum() < 48
    assert not (layer.eval()(image, text, None, padded)[0] == layer.norm_image(image)).flatten(1).all(1).any()
