"""Swin Transformer against timm's, on pictures of any size, and its shifted windows."""

from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.layers import blocks
from grounding_dino.modeling.backbone.swin import (
    SwinTransformer,
    relative_position_index,
    shifted_window_mask,
    window_partition,
    window_reverse,
)

import pytest
import timm
import torch

OPTIONS: dict[str, Any] = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4), "window_size": 2}
STAGES = ("stage1", "stage2", "stage3", "stage4")


def build(**options: Any) -> SwinTransformer:
    torch.manual_seed(0)
    return SwinTransformer(**{**OPTIONS, "out_features": STAGES, **options}).eval()


def timm_swin(ours: SwinTransformer) -> torch.nn.Module:
    """timm's Swin with our weights, for pictures of 128 x 128."""
    names = {"projection": "proj", "attention": "attn", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2", "attn.projection": ""}
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=128,
        embed_dim=OPTIONS["embed_dim"],
        depths=OPTIONS["depths"],
        num_heads=OPTIONS["num_heads"],
        window_size=OPTIONS["window_size"],
        num_classes=0,
        drop_path_rate=0.0,
    )
    state = {}
    for name, value in ours.state_dict().items():
        if name.startswith("norms."):
            continue
        for old, new in names.items():
            name = name.replace(old, new) if new else name
        if ".downsample." in name:  # timm puts the merging at the head of the next stage
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage + 1}.")
        state[name] = value
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(n.startswith("norm.") or "relative_position" in n or "mask" in n for n in missing)
    return model.eval()


def randomised(model: SwinTransformer) -> SwinTransformer:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@torch.no_grad()
@pytest.mark.parametrize("tokens", [2048, 50])
def test_equals_timm(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a size where every map is a multiple of the window and larger than it (there timm shifts, as we do).

    In one piece, and with blocks of windows and tokens that end in the middle of a picture.
    """
    monkeypatch.setattr(blocks, "TOKENS_PER_THREAD", tokens)
    ours = randomised(build())
    theirs = timm_swin(ours)
    images = torch.randn(2, 3, 128, 128)
    outputs = ours(images)
    x = theirs.patch_embed(images)
    for stage, layer in zip(STAGES, theirs.layers):
        x = layer(x)  # (B, H, W, C), before our output norm
        torch.testing.assert_close(outputs[stage], ours.norms[stage](x).permute(0, 3, 1, 2), atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (3, 31), (31, 2), (4, 4), (17, 30), (33, 57), (64, 96)])
def test_any_size(size: tuple[int, int]) -> None:
    model = build(window_size=3)
    outputs = model(torch.randn(1, 3, *size))
    for i, stage in enumerate(STAGES):
        stride = model.output_shape()[stage].stride
        assert stride == 4 * 2**i
        expected = [-(-length // stride) for length in size]  # rounded up
        assert outputs[stage].shape[1] == model.output_shape()[stage].channels == 8 * 2**i
        assert list(outputs[stage].shape[2:]) == expected
        assert outputs[stage].isfinite().all()


@torch.no_grad()
def test_padding_to_patches_is_zeros() -> None:
    model, image = build(), torch.randn(1, 3, 13, 18)
    padded = torch.nn.functional.pad(image, (0, 2, 0, 3))
    for ours, expected in zip(model(image).values(), model(padded).values()):
        assert torch.equal(ours, expected)


def test_shifted_window_mask_equals_loop() -> None:
    height, width, window, shift = 5, 7, 3, 1
    mask = shifted_window_mask(height, width, window, shift, torch.device("cpu"))
    rows, columns = 6, 9  # padded

    def wrapped(index: int, size: int) -> bool:
        """Whether the cell came from the other end of the map."""
        return index >= size - shift

    assert mask.shape == (2 * 3, 9, 9)
    for number in range(len(mask)):
        top, left = number // 3 * window, number % 3 * window
        cells = [(top + i, left + j) for i in range(window) for j in range(window)]
        for i, (y1, x1) in enumerate(cells):
            for j, (y2, x2) in enumerate(cells):
                together = wrapped(y1, rows) == wrapped(y2, rows) and wrapped(x1, columns) == wrapped(x2, columns)
                assert mask[number, i, j] == (0 if together else -100)


def test_windows() -> None:
    x = torch.arange(2 * 4 * 6 * 3).view(2, 4, 6, 3)
    windows = window_partition(x, 2)
    assert windows.shape == (2 * 2 * 3, 4, 3)
    assert torch.equal(windows[1], x[0, :2, 2:4].reshape(4, 3))
    assert torch.equal(window_reverse(windows, 2, 4, 6), x)
    index = relative_position_index(2)
    assert index[0].tolist() == [4, 3, 1, 0] and index.diagonal().unique().tolist() == [4]


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(activation_checkpointing=checkpointing).train()
        sum(x.square().mean() for x in model(torch.ones(1, 3, 40, 24)).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_drop_path_rises_from_zero() -> None:
    model = build(drop_path_rate=0.7)
    rates = [getattr(block.drop_path, "p", 0.0) for stage in model.layers for block in stage.blocks]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.7, 8))


def test_outputs_are_those_asked_for(tiny_cfg) -> None:
    assert list(build(out_features=["stage2", "stage4"])(torch.randn(1, 3, 32, 32))) == ["stage2", "stage4"]
    with pytest.raises(ValueError, match=r"unknown Swin outputs \['stage9'\]; this backbone has \['stage1'"):
        build(out_features=["stage9"])
