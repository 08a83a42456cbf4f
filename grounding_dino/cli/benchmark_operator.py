"""`tools/benchmark.py --op`: deformable attention beside its PyTorch twin."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from grounding_dino.analysis.ceiling import synchronize
from grounding_dino.cli.benchmark_inputs import DTYPES
from grounding_dino.cli.benchmark_report import Timing
from grounding_dino.ops import ms_deform_attn, ms_deform_attn_torch

import torch
from torch import Tensor

STRIDES = (8, 16, 32, 64)  # of the feature levels


def measure(functions: Sequence[Callable[[], object]], repeats: int, device: str = "cpu") -> list[Timing]:
    """Times the functions in turn, round after round, so that a busy machine slows them alike; one round warms up."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, times in zip(functions, seconds, strict=True):
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            if turn:
                times.append(time.perf_counter() - start)
    return [Timing(statistics.median(times), min(times), max(times)) for times in seconds]


def deformable_attention_inputs(
    size: tuple[int, int],
    heads: int = 8,
    channels: int = 32,
    points: int = 4,
    queries: int | None = None,
    scattered: bool = False,
    seed: int = 0,
) -> tuple[Tensor, ...]:
    """Arguments of `ms_deform_attn` as an encoder layer has them for a picture of `size` (height, width).

    Args:
        queries: by default one a cell of the four levels, in order; else that many cells, evenly spread.
        scattered: points anywhere in the picture; else around their query, 3 cells of each level away (one sigma).
    """
    shapes = torch.tensor([[-(-size[0] // s), -(-size[1] // s)] for s in STRIDES])
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    generator = torch.Generator().manual_seed(seed)
    cells = []
    for height, width in shapes.tolist():
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        cells.append(torch.stack([x, y], -1).reshape(-1, 2))
    centres = torch.cat(cells)
    value = torch.randn(1, len(centres), heads, channels, generator=generator)
    if queries is not None:
        centres = centres[torch.linspace(0, len(centres) - 1, queries).long()]
    shape = (1, len(centres), heads, len(shapes), points)
    if scattered:
        locations = torch.rand(*shape, 2, generator=generator)
    else:
        offsets = 3 * torch.randn(*shape, 2, generator=generator) / shapes.flip(1)[:, None]
        locations = centres[None, :, None, None, None] + offsets
    weights = torch.randn(*shape[:3], len(shapes) * points, generator=generator).softmax(-1).view(shape)
    return value, shapes, starts, locations, weights


def _runs(function: Callable[..., Tensor], arguments: Sequence[Tensor]) -> tuple[Callable[[], object], ...]:
    leaves = [a.clone().requires_grad_(a.is_floating_point()) for a in arguments]
    with torch.no_grad():
        gradient = torch.randn_like(function(*arguments))

    def forward() -> None:
        with torch.no_grad():
            function(*arguments)

    def both() -> None:
        torch.autograd.grad(function(*leaves), [leaf for leaf in leaves if leaf.requires_grad], gradient)

    return forward, both


def measure_operator(
    arguments: tuple[Tensor, ...], dtypes: Sequence[str], device: str, repeats: int
) -> list[dict[str, Any]]:
    """Times of `ms_deform_attn` and of its twin, one record a dtype and direction; times in seconds."""
    records = []
    for name in dtypes:
        moved = [a.to(device) for a in arguments]
        moved[0] = moved[0].to(DTYPES[name])
        runs = zip(_runs(ms_deform_attn_torch, moved), _runs(ms_deform_attn, moved), strict=True)
        for direction, pair in zip(("forward", "forward+backward"), runs, strict=True):
            twin, native = measure(pair, repeats, device)
            record = {"dtype": name, "direction": direction, "queries": moved[3].shape[1]}
            ratio = twin.median / native.median
            records.append({**record, "twin": twin._asdict(), "native": native._asdict(), "speedup": ratio})
    return records
