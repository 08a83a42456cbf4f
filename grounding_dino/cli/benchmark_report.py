"""The tables of `tools/benchmark.py`'s records."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grounding_dino.analysis.parts import PARTS
from grounding_dino.cli.benchmark_inference import OURS, SIDES
from grounding_dino.tables import format_table

import torch

AGREEMENT = 1e-3  # difference of equal models, as a share of the logits' range, and of boxes; both are rounding


class Timing(NamedTuple):
    """Seconds of repeated runs."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median * 1e3:.1f} ms ({self.lowest * 1e3:.1f} to {self.highest * 1e3:.1f})"


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the times depend on beside the model."""
    facts: dict[str, Any] = {"processor": _processor(), "threads": torch.get_num_threads()}
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    return {**facts, "capability": capability, "torch": torch.__version__, "transformers": _transformers()}


def _transformers() -> str:
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def report(record: dict[str, Any]) -> str:
    """The tables of one configuration."""
    height, width = record["size"]
    text = "fixed classes"
    if record["prompts"]:
        kept = "kept from run to run" if record["text_kept"] else "computed in every run"
        text = f"{record['categories']} categories in {record['prompts']} prompt(s), our text features {kept}"
    lines = [f"{record['config']}: {record['batch']} x {height}x{width}, {text}"]
    if record["obstacle"]:
        lines.append(f"ours alone: {record['obstacle']}")
    if record["difference"] is not None:
        lines.append(_agreement(record["difference"]))
    rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in record["ceiling"].items())
    lines += [f"matrix products here, GFLOP/s: {rates}", _sides_table(record)]
    if "parts" in record:
        lines += [_parts_table(record, name) for name in record["parts"]]
    for name, found in record.get("chunks", {}).items():
        lines.append(
            f"{name}: {record['prompts']} prompts take {found['seconds']:.3f} s, {found['ratio']:.3f}x of the backbone "
            f"once ({found['backbone']:.3f} s) and the rest for each ({found['rest']:.3f} s)"
        )
    return "\n".join(lines)


def _agreement(found: dict[str, float]) -> str:
    """Whether both sides compute the same, which makes their times comparable."""
    numbers = (
        f"logits differ by at most {found['logits']:.1e} (their range is {found['logits_range']:.3g}), "
        f"boxes by {found['boxes']:.1e}"
    )
    if max(found["logits"] / found["logits_range"], found["boxes"]) <= AGREEMENT:
        return f"the same numbers in fp32: {numbers}"
    return (
        f"NOT the same numbers in fp32: {numbers}; transformers has half of the encoder's heads in fusion and in text "
        "layers, and no shape of a weight tells another count"
    )


def _sides_table(record: dict[str, Any]) -> str:
    dtypes = [name for name in record["ceiling"] if any(name in row.get("faster_than", ()) for row in record["rows"])]
    head = ("side", "s, median (range)", "pictures/s", "peak GiB", *(f"against {d}" for d in dtypes))
    rows = []
    for row in record["rows"]:
        name = f"{SIDES[row['side']]}, {row['dtype']}"
        if "seconds" not in row:
            rows.append((name, f"failed: {row['error'][:90]}", "", "", *("" for _ in dtypes), "", ""))
            continue
        seconds = row["seconds"]
        memory = row["memory"]["gpu"] or row["memory"]["process"]
        rows.append(
            (
                name,
                f"{seconds['median']:.3f} ({seconds['lowest']:.3f} to {seconds['highest']:.3f})",
                f"{row['pictures_per_second']:.3g}",
                f"{memory / 2**30:.2f}",
                *(f"{row['faster_than'][dtype]:.2f}x" for dtype in dtypes),
                f"{row['flops'] / 1e9:.1f}" if "flops" in row else "",
                f"{row['share_of_ceiling']:.0%}" if "flops" in row else "",
            )
        )
    return format_table((*head, "GFLOP", "of ceiling"), rows)


def _parts_table(record: dict[str, Any], name: str) -> str:
    side, dtype = name.split()
    seconds: dict[str, float] = record["parts"][name]
    counted = record["flops"]["parts"] if record["flops"] and side == OURS and record["prompts"] <= 1 else {}
    # text that is kept is not computed again
    kept = "text encoder" if record["text_kept"] else ""
    work = {part: record["batch"] * n for part, n in counted.items() if part != kept}
    total = sum(seconds.values())
    rows = []
    for part in (*(part for part in PARTS if part in seconds), "total"):
        time = total if part == "total" else seconds[part]
        flops = sum(work.values()) if part == "total" else work.get(part, 0)
        rate = flops / time if time else 0.0
        shown = (
            (f"{flops / 1e9:.1f}", f"{rate / 1e9:.0f}", f"{rate / record['ceiling'][dtype]:.0%}")
            if flops
            else ("",) * 3
        )
        rows.append((part, f"{time * 1e3:.1f}", f"{time / total:.1%}", *shown))
    return format_table((f"parts of {SIDES[side]}, {dtype}", "ms", "share", "GFLOP", "GFLOP/s", "of ceiling"), rows)


def training_report(record: dict[str, Any]) -> str:
    """Steps of our training and of `transformers`'."""
    height, width = record["size"]
    rows = []
    for row in record["rows"]:
        name = f"{row['side']}, {row['dtype']}"
        if "seconds" not in row:
            rows.append((name, f"failed: {row['error'][:90]}", "", "", "", ""))
            continue
        seconds, memory = row["seconds"], row["memory"]["gpu"] or row["memory"]["process"]
        rows.append(
            (
                name,
                f"{1 / seconds['median']:.3g}",
                f"{seconds['median']:.3f} ({seconds['lowest']:.3f} to {seconds['highest']:.3f})",
                f"{row['faster']:.2f}x" if "faster" in row else "",
                f"{memory / 2**30:.2f}",
                f"{row['trainable'] / 1e6:.1f}",
            )
        )
    title = f"{record['config']}: training on {record['batch']} x {height}x{width}, {record['categories']} categories"
    head = ("side", "steps/s", "s, median (range)", "faster", "peak GiB", "M trained")
    return f"{title}\n{format_table(head, rows)}"


def operator_table(records: Sequence[dict[str, Any]]) -> str:
    """Deformable attention beside its twin."""
    rows = [
        (
            f"{r['dtype']} {r['direction']}",
            str(r["queries"]),
            str(Timing(**r["twin"])),
            str(Timing(**r["native"])),
            f"{r['speedup']:.1f}x",
            f"{r['native']['median'] / r['queries'] * 1e6:.2f}",
        )
        for r in records
    ]
    head = ("deformable attention", "queries", "twin, median (range)", "kernel", "faster", "us a query")
    return format_table(head, rows)
