"""`tools/benchmark.py --config-file ...`: our models beside `transformers`' Grounding DINO, run by run in turn."""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grounding_dino.cli.benchmark_workers import TUNED_ALLOCATOR, Worker, WorkerError, run_in_turn

OURS = "ours"
THEIRS = "transformers"
EXPORTED = ("onnxruntime", "openvino")  # runtimes of an exported file, in float32
# What `--sides` chooses from, and what it says in the table.
SIDES = {
    OURS: "ours",
    THEIRS: "transformers",
    "compiled": "transformers, torch.compile",
    "tuned": "transformers, allocator tuned",
    "onnxruntime": "ours, exported, in ONNX Runtime",
    "openvino": "ours, exported, in OpenVINO",
}


class Plan(NamedTuple):
    """What is measured of each model.

    Attributes:
        size: of the pictures, height and width.
        categories: how many names are looked for.
        text_kept: whether our model keeps features of prompts from run to run; `transformers` cannot.
        with_parts: measure the parts as well.
        exported: the .onnx file of the model, for the sides EXPORTED.
    """

    size: tuple[int, int]
    batch: int
    dtypes: Sequence[str]
    device: str
    categories: int
    sides: Sequence[str]
    text_kept: bool
    with_parts: bool
    repeats: int
    exported: str = ""


def measure_model(config: str, opts: Sequence[Any], plan: Plan) -> dict[str, Any]:
    """The record of one configuration, ready for JSON; seconds, bytes, operations of which a multiply-add is two.

    Raises:
        ValueError: the model cannot be built, or not be asked for so many names.
    """
    record: dict[str, Any] = {"config": config, "size": list(plan.size), "batch": plan.batch, "device": plan.device}
    record |= {"categories": plan.categories, "text_kept": plan.text_kept}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, contextlib.ExitStack() as stack:
        _say(f"{config}: building it with random weights")
        record |= _prepare(config, opts, folder, plan)
        sides = [side for side in plan.sides if side in (OURS, *EXPORTED) or not record["obstacle"]]
        workers, failed = _start(stack, folder, sides, plan)
        if not any(side == OURS for side, _ in workers):
            raise ValueError(f"{config}: {failed[0]['error']}")
        record["difference"] = _difference(workers, Path(folder) / "outputs.pt")
        record["rows"], record["ceiling"] = _take_turns(stack, workers, plan)
        for row in record["rows"]:
            if "error" in row:
                del workers[row["side"], row["dtype"]]
        if plan.with_parts:
            record["parts"] = _parts(workers, plan.repeats)
            if record["prompts"] > 1:
                record["chunks"] = _chunks(workers, plan.repeats, record["prompts"])
        record["rows"] += failed
    _relate(record)
    return record


def _say(text: str) -> None:
    """On the screen, and in no file that the table is written to."""
    print(text, file=sys.stderr, flush=True)


def _prepare(config: str, opts: Sequence[Any], folder: str, plan: Plan) -> dict[str, Any]:
    settings = {"config": config, "opts": list(opts), "folder": folder, "size": plan.size}
    try:
        with Worker("preparation", {**settings, "categories": plan.categories}) as worker:
            facts: dict[str, Any] = worker.call("prepare")
            _say(f"{config}: counting operations")
            try:
                facts["flops"] = worker.call("count", compared=not facts["obstacle"])
            except WorkerError as error:
                _say(f"{config}: operations are not counted: {error}")
                facts["flops"] = None
            return facts
    except WorkerError as error:
        raise ValueError(f"{config} is not measured: {error}") from error


def _start(
    stack: contextlib.ExitStack, folder: str, sides: Sequence[str], plan: Plan
) -> tuple[dict[tuple[str, str], Worker], list[dict[str, Any]]]:
    """The processes by (side, dtype), warmed up, and rows of those that could not be."""
    workers: dict[tuple[str, str], Worker] = {}
    failed = []
    for side in sides:
        for dtype in ["fp32"] if side in EXPORTED else plan.dtypes:
            _say(f"  warming up {SIDES[side]}, {dtype}")
            settings: dict[str, Any] = {"folder": folder, "size": plan.size, "batch": plan.batch, "dtype": dtype}
            settings |= {"categories": plan.categories, "device": plan.device}
            if side == OURS:
                settings["text_kept"] = plan.text_kept
            elif side == "compiled":
                settings["compiled"] = True
            elif side in EXPORTED:
                settings |= {"runtime": side, "file": plan.exported}
            environment = TUNED_ALLOCATOR if side == "tuned" else {}
            try:
                role = "exported" if side in EXPORTED else OURS if side == OURS else THEIRS
                worker = Worker(role, settings, environment)
            except WorkerError as error:
                failed.append({"side": side, "dtype": dtype, "error": str(error)})
                continue
            workers[side, dtype] = stack.enter_context(worker)
    return workers, failed


def _difference(workers: Mapping[tuple[str, str], Worker], file: Path) -> dict[str, float] | None:
    """How far our fp32 results are from theirs; None where there are not both."""
    if (OURS, "fp32") not in workers or (THEIRS, "fp32") not in workers:
        return None
    try:
        workers[THEIRS, "fp32"].call("write_outputs", file=str(file))
        found: dict[str, float] = workers[OURS, "fp32"].call("compare", file=str(file))
    except WorkerError as error:
        _say(f"  results are not compared: {error}")
        return None
    return found


def _take_turns(
    stack: contextlib.ExitStack, workers: Mapping[tuple[str, str], Worker], plan: Plan
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row a side, and the best rate of matrix products of each dtype."""
    ceiling_worker = stack.enter_context(Worker("ceiling", {"dtypes": list(plan.dtypes), "device": plan.device}))
    ceiling: dict[str, float] = {}

    def begin(turn: int) -> None:
        _say(f"  round {turn + 1} of {plan.repeats}")
        for name, rate in ceiling_worker.call("run").items():
            ceiling[name] = max(rate, ceiling.get(name, 0.0))

    found = run_in_turn(workers, plan.repeats, begin)
    return [{"side": side, "dtype": dtype, **result} for (side, dtype), result in found.items()], ceiling


def _parts(workers: Mapping[tuple[str, str], Worker], repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of each part, of ours in each dtype and of `transformers` as it comes, in turn."""
    asked = {f"{side} {dtype}": worker for (side, dtype), worker in workers.items() if side in (OURS, THEIRS)}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in asked}
    _say("  parts")
    for _ in range(repeats):
        for name, worker in asked.items():
            runs[name].append(worker.call("parts"))
    return {name: _medians(found) for name, found in runs.items()}


def _chunks(workers: Mapping[tuple[str, str], Worker], repeats: int, prompts: int) -> dict[str, dict[str, float]]:
    """What several prompts of a picture cost beside what they have to: the backbone once, the rest for each.

    `seconds` of the whole, `backbone` with what comes before it and the projections of its maps, `rest` of the first
    prompt, and `ratio` of the whole to backbone + prompts x rest.
    """
    found = {}
    for (side, dtype), worker in workers.items():
        if side != OURS:
            continue
        totals, firsts = [], []
        for _ in range(repeats):
            totals.append(sum(worker.call("parts").values()))
            firsts.append(worker.call("chunk_parts"))
        first = _medians(firsts)
        backbone = sum(first.get(part, 0.0) for part in ("preprocessing", "backbone", "input projection", "pyramid"))
        rest, whole = sum(first.values()) - backbone, statistics.median(totals)
        ratio = whole / (backbone + prompts * rest)
        found[f"{side} {dtype}"] = {"seconds": whole, "backbone": backbone, "rest": rest, "ratio": ratio}
    return found


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: statistics.median(run.get(name, 0.0) for run in runs) for name in names}


def _relate(record: dict[str, Any]) -> None:
    """Adds to each row what follows from the others: pictures a second, ratios, operations, shares of the ceiling."""
    medians = {(row["side"], row["dtype"]): row["seconds"]["median"] for row in record["rows"] if "seconds" in row}
    flops = record["flops"] or {}
    for row in record["rows"]:
        if "seconds" not in row:
            continue
        median = row["seconds"]["median"]
        row["pictures_per_second"] = record["batch"] / median
        row["faster_than"] = {
            dtype: medians[THEIRS, dtype] / median for dtype in ("fp32", "bf16", "fp16") if (THEIRS, dtype) in medians
        }
        work = flops.get(OURS if row["side"] in (OURS, *EXPORTED) else THEIRS)
        if work and row["side"] == OURS and record["text_kept"]:  # what is kept is not computed in a run
            work -= flops["parts"].get("text encoder", 0)
        if work and record["prompts"] <= 1:  # operations are counted for one prompt
            row["flops"] = work * record["batch"]
            row["share_of_ceiling"] = row["flops"] / median / record["ceiling"][row["dtype"]]
