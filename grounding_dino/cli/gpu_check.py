"""`tools/gpu_check.py`: whether the CUDA kernels, the model and its training work on this machine's GPU."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grounding_dino.analysis.ceiling import synchronize
from grounding_dino.cli.arguments import count, program
from grounding_dino.cli.benchmark_inputs import DTYPES
from grounding_dino.cli.benchmark_operator import deformable_attention_inputs, measure_operator
from grounding_dino.cli.demo import prepare_json
from grounding_dino.modeling.hot_path import compile_parts, use_cuda_graphs
from grounding_dino.ops import kernel_status, ms_deform_attn, ms_deform_attn_torch
from grounding_dino.tables import format_table

import torch
from torch import Tensor

NO_GPU = 2  # exit code
# Largest error of results of each dtype, as a share of the largest number: a few of its rounding steps.
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1.6e-2}
# Location gradients jump from cell to cell; where fp32 and fp64 place a point in different cells, they differ.
JUMPS = 1e-4
RESULTS = ("output", "value gradient", "location gradient", "weight gradient")
# Picture, heads, channels, points: an encoder's, odd channels, wide rows, a picture of one cell a level.
SHAPES = (((256, 320), 8, 32, 4), ((96, 128), 8, 16, 4), ((64, 96), 3, 7, 5), ((64, 64), 2, 128, 2), ((8, 8), 2, 32, 1))
CATEGORIES = ("red circle", "blue square", "green triangle")
# Of the BEST scores, in the mean: half precision's rounding moves single ones, near ties, by up to 0.07.
SCORE_TOLERANCE = {None: 1e-3, torch.float16: 1e-2, torch.bfloat16: 2e-2}
BEST = 20
CHILD_TIMEOUT = 1800  # seconds
TRAINING_STEPS = 8
PARTS = ("operator", "nvrtc", "times", "model", "training", "benchmark")


class Result(NamedTuple):
    """One line of the table."""

    name: str
    numbers: str
    passed: bool


def _results(function: Callable[..., Tensor], arguments: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
    leaves = [a.detach().clone().requires_grad_(a.is_floating_point()) for a in arguments]
    output = function(*leaves)
    gradients = torch.autograd.grad(output, [leaf for leaf in leaves if leaf.requires_grad], gradient.to(output.dtype))
    return [output.detach(), *gradients]


def check_operator(device: str, dtypes: Sequence[str]) -> Iterator[Result]:
    """The kernels against the fp64 twin on the same (rounded) values, forward and backward, over several shapes."""
    for name in dtypes:
        worst = dict.fromkeys(RESULTS, 0.0)
        for size, heads, channels, points in SHAPES:
            arguments = [a.to(device) for a in deformable_attention_inputs(size, heads, channels, points)]
            arguments[0] = arguments[0].to(DTYPES[name])
            exact = [a.double() if a.is_floating_point() else a for a in arguments]
            gradient = torch.randn(*arguments[3].shape[:2], heads * channels, device=device).to(DTYPES[name])
            ours = _results(ms_deform_attn, arguments, gradient)
            twins = _results(ms_deform_attn_torch, exact, gradient)
            for result, got, wanted in zip(RESULTS, ours, twins, strict=True):
                worst[result] = max(worst[result], _error(got, wanted, jumps="location" in result))
        for result, error in worst.items():
            # Gradients of locations and weights are fp32 whatever the values are, but sum up products of them.
            passed = error <= TOLERANCE[name] * (1 if result == "output" else 10)
            yield Result(f"operator {name}, {result}", f"largest error {error:.1e} of the range", passed)


def _error(got: Tensor, wanted: Tensor, jumps: bool) -> float:
    """Largest difference as a share of the largest number; without the share of JUMPS where `jumps`."""
    errors = (got.double() - wanted).abs().flatten() / wanted.abs().max().clamp_min(1e-30)
    if jumps:
        errors = errors.sort().values[: errors.numel() - int(JUMPS * errors.numel())]
    return float("inf") if not errors.isfinite().all() else float(errors.max())


def time_operator(device: str, dtypes: Sequence[str], repeats: int) -> Iterator[Result]:
    """Times at 800x1333 beside the time that memory needs to move inputs and output once; no bar to pass."""
    arguments = deformable_attention_inputs((800, 1333))
    rate = bandwidth(device)
    yield Result("memory bandwidth, copies", f"{rate / 1e9:.0f} GB/s", True)
    for record in measure_operator(arguments, dtypes, device, repeats):
        twin, native = (record[key]["median"] * 1e3 for key in ("twin", "native"))
        numbers = f"{native:.3f} ms, twin {twin:.3f} ms, {record['speedup']:.1f}x"
        if record["direction"] == "forward":
            floor = least_bytes(arguments, DTYPES[record["dtype"]]) / rate * 1e3
            numbers += f"; floor {floor:.3f} ms, {native / floor:.1f} times that"
        yield Result(f"time {record['dtype']} {record['direction']}, 800x1333", numbers, True)


def least_bytes(arguments: Sequence[Tensor], dtype: torch.dtype) -> int:
    """Bytes of values and output in `dtype`, and of fp32 locations and weights, each moved once."""
    value, locations, weights = arguments[0], arguments[3], arguments[4]
    output = locations.shape[0] * locations.shape[1] * value.shape[2] * value.shape[3]
    return (value.numel() + output) * dtype.itemsize + (locations.numel() + weights.numel()) * 4


def bandwidth(device: str, size: int = 1 << 28, repeats: int = 10) -> float:
    """Bytes a second, read and written, of the fastest copy of `size` fp32 numbers."""
    source = torch.zeros(size, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds[1:])


def check_nvrtc(dtypes: Sequence[str]) -> Iterator[Result]:
    """The kernels as NVRTC compiles them against the twin, in a process that finds no nvcc and an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        hidden = {"NVCC": "no-such-nvcc", "GROUNDING_DINO_CACHE": cache, "GROUNDING_DINO_KERNELS": "native"}
        done = _run("gpu_check", ["--only", "operator", "--dtype", *dtypes], hidden)
    lines = (done.stdout + done.stderr).strip().splitlines()
    print("\n".join(["with NVRTC alone:", *lines]))
    yield Result(
        "kernels compiled by NVRTC", lines[-1] if lines and done.returncode else "as above", not done.returncode
    )


def benchmark(file: Path | None) -> Iterator[Result]:
    """`tools/benchmark.py` on the GPU, models against `transformers`; what it prints is printed."""
    for batch in ("1", "16"):
        name = [] if file is None else ["--json", str(file.with_suffix(f".batch{batch}.json"))]
        arguments = [
            "--config-file",
            "swin_t_ogc",
            "--device",
            "cuda",
            "--size",
            "800x1333",
            "--batch",
            batch,
            "--parts",
        ]
        done = _run("benchmark", [*arguments, *name], {})
        print(done.stdout)
        error = (done.stderr.strip().splitlines() or ["no word"])[-1]
        yield Result(f"benchmark.py, batch {batch}", error if done.returncode else "see its table", not done.returncode)


def _run(command: str, arguments: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from grounding_dino.cli.{command} import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT,
    )


def _picture() -> Tensor:
    """A grey picture with a red disc, a blue square and some noise; (3, 256, 320) uint8."""
    y, x = torch.meshgrid(torch.arange(256), torch.arange(320), indexing="ij")
    noise = torch.randint(0, 24, (3, 256, 320), generator=torch.Generator().manual_seed(0))
    picture = 110 + noise
    picture[:, (x - 90) ** 2 + (y - 120) ** 2 < 50**2] = torch.tensor([[210], [30], [40]])
    picture[:, (abs(x - 230) < 40) & (abs(y - 150) < 40)] = torch.tensor([[40], [60], [200]])
    return picture.to(torch.uint8)


def _build(device: str, opts: Sequence[object]) -> Any:
    from grounding_dino.model_zoo import SHIPPED_MODEL, build_model, find_weights, load_cfg

    cfg = load_cfg(SHIPPED_MODEL, [*opts, "MODEL.DEVICE", device])
    try:
        weights = find_weights(cfg, SHIPPED_MODEL)
    except FileNotFoundError:
        weights = ""  # the same random weights on every device
    torch.manual_seed(0)
    return build_model(cfg, weights or None)


def check_model(device: str, opts: Sequence[object] = ()) -> Iterator[Result]:
    """Detections of the small model in a picture: on the GPU as on the CPU, in each precision and by each fast way."""
    reference = _build("cpu", opts)
    wanted = _scores(reference, "cpu", None)
    ways: list[tuple[str, torch.dtype | None, Callable[[Any], Any]]] = [
        ("fp32", None, lambda model: None),
        ("bf16 autocast", torch.bfloat16, lambda model: None),
        ("fp16 autocast", torch.float16, lambda model: None),
        ("CUDA graphs", None, use_cuda_graphs),
        ("CUDA graphs, bf16 autocast", torch.bfloat16, use_cuda_graphs),
        ("compiled", None, compile_parts),
    ]
    for name, dtype, prepare in ways:
        try:
            model = _build(device, opts)
            model.load_state_dict(reference.state_dict())
            prepare(model)
            for _ in range(3):  # graphs are captured at the second call, and replayed from the third on
                found = _scores(model, device, dtype)
        except Exception as error:  # one way that breaks does not hide the others
            yield Result(f"model, {name}", f"{type(error).__name__}: {str(error).splitlines()[:1]}", False)
            continue
        length = min(len(wanted), len(found), BEST)
        differences = (wanted[:length] - found[:length]).abs() if length else torch.zeros(1)
        as_many = len(wanted) == len(found) or dtype is not None
        passed = as_many and float(differences.mean()) <= SCORE_TOLERANCE[dtype]
        graphs = getattr(getattr(model, "find", None), "graphs", None)
        if graphs is not None and torch.device(device).type == "cuda":
            passed = passed and len(graphs) > 0
            name += f" ({len(graphs)} captured)"
        numbers = f"scores differ by {differences.mean():.1e} in the mean, {differences.max():.1e} at most"
        yield Result(f"model, {name}", f"{len(found)} detections, {numbers}", passed)


def _scores(model: Any, device: str, dtype: torch.dtype | None) -> Tensor:
    """Best first."""
    inputs = {"image": _picture(), "height": 256, "width": 320, "categories": list(CATEGORIES)}
    with torch.no_grad(), torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None):
        found = model([inputs])[0]["instances"].to("cpu")
    scores: Tensor = found.scores.float().sort(descending=True).values
    return scores


def check_training(device: str, opts: Sequence[object] = ()) -> Iterator[Result]:
    """A few steps on one picture in fp32 and under bf16 autocast: losses are finite and fall."""
    from detectron2.structures import Boxes, Instances

    targets = Instances((256, 320))
    targets.gt_boxes = Boxes(torch.tensor([[40.0, 70.0, 140.0, 170.0], [190.0, 110.0, 270.0, 190.0]]))
    targets.gt_classes = torch.tensor([0, 1])
    inputs = {"image": _picture(), "height": 256, "width": 320, "categories": list(CATEGORIES), "instances": targets}
    for name, enabled in (("fp32", False), ("bf16 autocast", True)):
        model = _build(device, opts).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
        losses = []
        for _ in range(TRAINING_STEPS):
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled):
                loss = torch.stack(list(model([inputs]).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            losses.append(float(loss.detach()))
        passed = all(torch.isfinite(torch.tensor(losses))) and min(losses[1:]) < losses[0]
        yield Result(f"training, {name}", f"loss {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps", passed)


def run(checks: Sequence[Callable[[], Iterator[Result]]]) -> list[Result]:
    """All lines; a check that fails itself is a line that did not pass."""
    results: list[Result] = []
    for check in checks:
        try:
            results += check()
        except Exception as error:  # whatever breaks, the table shows the rest
            first_line = (str(error).splitlines() or [""])[0]
            results.append(Result(getattr(check, "__name__", "check"), f"{type(error).__name__}: {first_line}", False))
    return results


def build_parser() -> argparse.ArgumentParser:
    """Precisions, parts and where the numbers go."""
    parser = argparse.ArgumentParser(prog=program("gpu_check.py"), description=__doc__)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=count, default=20, help="rounds of each timing (default 20)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all lines, and the benchmarks beside it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all checks and prints one table; 0 where all passed, 1 where one did not, 2 without a GPU."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("No GPU: torch sees no CUDA device on this machine, so nothing was checked.")
        return NO_GPU
    try:
        prepare_json(None if args.json is None else str(args.json))
    except ValueError as error:
        parser.error(str(error))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    status = kernel_status()
    for row in status:
        print(f"{row.name}: {row.text}")
    fall_back = any(row.remedy for row in status)

    def operator() -> Iterator[Result]:
        yield from check_operator("cuda", args.dtype)
        yield Result("kernels are native", "no, see above" if fall_back else "yes", not fall_back)

    def times() -> Iterator[Result]:
        yield from time_operator("cuda", args.dtype, args.repeats)

    def model() -> Iterator[Result]:
        yield from check_model("cuda")

    def training() -> Iterator[Result]:
        yield from check_training("cuda")

    def nvrtc() -> Iterator[Result]:
        yield from check_nvrtc(args.dtype)

    def benchmarks() -> Iterator[Result]:
        yield from benchmark(args.json)

    parts = dict(zip(PARTS, (operator, nvrtc, times, model, training, benchmarks), strict=True))
    results = run([parts[name] for name in args.only])
    if args.json is not None:
        machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
        lines = {"checks": [r._asdict() for r in results], "kernels": [row._asdict() for row in status], **machine}
        args.json.write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")
    rows = [(r.name, r.numbers, "ok" if r.passed else "FAILED") for r in results]
    print(format_table(("check", "numbers", "result"), rows))
    failed = [r.name for r in results if not r.passed]
    print(f"{len(failed)} of {len(results)} lines FAILED: {', '.join(failed)}" if failed else "all passed")
    return int(bool(failed))
