"""`tools/benchmark.py`: how fast operators are beside their PyTorch twins, and training steps with each option."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grounding_dino.cli.arguments import count, picture_size
from grounding_dino.cli.benchmark_training import (
    OPTIONS,
    default_options,
    load_training_config,
    measure_training,
    training_rows,
)
from grounding_dino.cli.data_arguments import add_data_arguments
from grounding_dino.ops import kernel_status, ms_deform_attn, ms_deform_attn_torch
from grounding_dino.tables import format_table

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STRIDES = (8, 16, 32, 64)  # of the feature levels


class Timing(NamedTuple):
    """Seconds of repeated runs."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median * 1e3:.1f} ms ({self.lowest * 1e3:.1f} to {self.highest * 1e3:.1f})"


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(functions: Sequence[Callable[[], object]], repeats: int) -> list[Timing]:
    """Times the functions in turn, round after round, so that a busy machine slows them alike; one round warms up."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, times in zip(functions, seconds, strict=True):
            _synchronize()
            start = time.perf_counter()
            function()
            _synchronize()
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
            twin, native = measure(pair, repeats)
            record = {"dtype": name, "direction": direction, "queries": moved[3].shape[1]}
            ratio = twin.median / native.median
            records.append({**record, "twin": twin._asdict(), "native": native._asdict(), "speedup": ratio})
    return records


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--op", action="store_true", help="measure deformable attention against its PyTorch twin")
    what.add_argument("--train", action="store_true", help="measure training steps, plain and with each --option")
    parser.add_argument(
        "--size", type=picture_size, default=(800, 1200), help="picture, height x width (default 800x1200)"
    )
    parser.add_argument("--queries", type=count, nargs="*", help="numbers of queries (default: one a cell)")
    parser.add_argument("--scattered", action="store_true", help="points anywhere instead of around their query")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu", help="of the operators, cpu or cuda; training has MODEL.DEVICE")
    parser.add_argument("--repeats", type=count, default=7, help="rounds, of which the median is given (default 7)")
    parser.add_argument("--option", action="append", choices=OPTIONS, help="of training (default: all); repeatable")
    parser.add_argument("--json", type=Path, help="write the numbers to this file as well")
    add_data_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the flags name, prints a table and returns 0."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.op and args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch sees no GPU; use --device cpu")
    for status in kernel_status():
        print(f"{status.name}: {status.text}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    if args.op:
        records = _operators(args)
    else:
        try:
            cfg = load_training_config(args)
            records = measure_training(cfg, args.option or default_options(cfg), measure, args.repeats)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        head = ("training", "pictures/s, median (range)", "step", "loading's share")
        print(format_table(head, training_rows(records)))
    if args.json:
        args.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 0


def _operators(args: argparse.Namespace) -> list[dict[str, Any]]:
    records = []
    for queries in args.queries or [None]:
        arguments = deformable_attention_inputs(args.size, queries=queries, scattered=args.scattered)
        records += measure_operator(arguments, args.dtype, args.device, args.repeats)
    rows = [
        (
            f"{r['dtype']} {r['direction']}",
            str(r["queries"]),
            str(Timing(**r["twin"])),
            str(Timing(**r["native"])),
            f"{r['speedup']:.1f}x",
        )
        for r in records
    ]
    print(format_table(("deformable attention", "queries", "twin, median (range)", "kernel", "faster"), rows))
    return records
