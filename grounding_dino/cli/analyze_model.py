"""`tools/analyze_model.py`: what a model costs, part by part, beside what its authors publish."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grounding_dino.cli.arguments import count, picture_size, program
from grounding_dino.tables import format_table

if TYPE_CHECKING:
    from detectron2.config import CfgNode

EPILOG = """\
Weights are random, so nothing is fetched; the work runs on the CPU, a full-size model in real size in about a minute.
One multiply-add counts as one, as in fvcore and in the published figures; operations are about twice as many.
examples:
  %(prog)s --config-file dino/r50_4scale_12ep
  %(prog)s --config-file swin_t_ogc --size 800x1066 --categories cat dog --json cost.json
  %(prog)s --config-file r50_instance --opts MODEL.PIXEL_DECODER.FFN_DIM 1024"""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog=program("analyze_model.py"),
        description="Parameters, multiply-adds and activation memory of each part of a model at inference, and how the "
        "published figures compare.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file",
        default="shapes_tiny",
        metavar="FILE",
        help="a path, or the short name of a packaged config (default: shapes_tiny)",
    )
    parser.add_argument(
        "--size", type=picture_size, default=(800, 1333), metavar="HxW", help="of the pictures (default: 800x1333)"
    )
    parser.add_argument("--batch", type=count, default=1, metavar="N", help="pictures at once (default: 1)")
    parser.add_argument(
        "--categories",
        nargs="+",
        metavar="NAME",
        help="what a model with text looks for (default: the classes of DATASETS.TEST)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="override the configuration; comes last",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        record = analyze(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(report(record))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def analyze(args: argparse.Namespace) -> dict[str, Any]:
    """The numbers of a model, ready for JSON: counts, multiply-adds and bytes.

    Raises:
        FileNotFoundError: no such configuration.
        ValueError: a configuration that cannot be, categories for a model without text, or none for one with text.
    """
    import grounding_dino.data.datasets  # noqa: F401  # whose classes are asked for
    from grounding_dino.analysis.flops import SAMPLING_OPERATORS, count_flops
    from grounding_dino.analysis.memory import measure_activations
    from grounding_dino.analysis.parts import PARTS, count_parameters
    from grounding_dino.analysis.published import published_cost
    from grounding_dino.model_zoo import build_model, load_cfg

    import torch

    cfg = load_cfg(args.config_file, args.opts)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.TEXT_ENCODER.CACHE_SIZE = "cpu", "", 0  # BERT runs every time
    asked = _asked(cfg, args.categories)
    torch.manual_seed(0)  # what random weights find decides about a panoptic model's postprocessing
    model = build_model(cfg)
    height, width = args.size
    inputs = [
        {"image": 255 * torch.rand(len(cfg.MODEL.PIXEL_MEAN), height, width), "height": height, "width": width, **asked}
        for _ in range(args.batch)
    ]
    parameters, activations = count_parameters(model), measure_activations(model, inputs)
    flops = count_flops(model, inputs)
    published = published_cost(args.config_file) if not args.opts else None
    return {
        "config": str(args.config_file),
        "size": [height, width],
        "batch": args.batch,
        "categories": len(asked["categories"]) if asked else None,
        "parts": {
            part: {
                "parameters": parameters[part].total if part in parameters else 0,
                "trainable": parameters[part].trainable if part in parameters else 0,
                "multiply_adds": flops.total(part),
                "activation_bytes": activations.made.get(part, 0),
            }
            for part in PARTS
            if part in parameters or flops.total(part) or part in activations.made
        },
        "peak_activation_bytes": activations.peak,
        "multiply_adds": flops.total(),
        "multiply_adds_without_sampling": flops.total(without=SAMPLING_OPERATORS),
        "operators": flops.by_operator(),
        "elementwise": sum(flops.elementwise.values()),
        "uncounted_calls": dict(flops.uncounted),
        "published": None if published is None else published._asdict(),
    }


def _asked(cfg: CfgNode, categories: Sequence[str] | None) -> dict[str, list[str]]:
    """The `categories` of every picture, empty for a model without text."""
    from detectron2.data import MetadataCatalog

    if not cfg.MODEL.TEXT_ENCODER.NAME:
        if categories:
            raise ValueError("--categories: the model reads no text (MODEL.TEXT_ENCODER.NAME is empty); leave them out")
        return {}
    for name in () if categories else cfg.DATASETS.TEST:
        categories = categories or MetadataCatalog.get(name).get("thing_classes")
    if not categories:
        raise ValueError(f"the classes of DATASETS.TEST {tuple(cfg.DATASETS.TEST)} are not known; give --categories")
    return {"categories": list(categories)}


def report(record: dict[str, Any]) -> str:
    """The tables of `analyze`'s numbers."""
    height, width = record["size"]
    text = "" if record["categories"] is None else f", {record['categories']} categories"
    lines = [
        f"{record['config']}: {record['batch']} x {height}x{width}{text}",
        _part_table(record),
        f"most activations held at once: {_mebibytes(record['peak_activation_bytes'])} MiB (weights and inputs apart)",
        "",
        format_table(
            ("operator", "G multiply-adds"), [(name, _giga(count)) for name, count in record["operators"].items()]
        ),
        f"in no total: {_giga(record['elementwise'])} G elements of elementwise operators; calls that count nothing: "
        + ", ".join(f"{name} {calls}" for name, calls in record["uncounted_calls"].items()),
    ]
    if record["published"] is not None:
        lines += ["", _comparison(record), record["published"]["note"]]
    return "\n".join(lines)


def _part_table(record: dict[str, Any]) -> str:
    columns = ("parameters", "trainable", "multiply_adds", "activation_bytes")
    parts = record["parts"]
    rows = {**parts, "total": {column: sum(part[column] for part in parts.values()) for column in columns}}
    formats = (_mega, _mega, _giga, _mebibytes)
    return format_table(
        ("part", "parameters, M", "trainable, M", "G multiply-adds", "activations, MiB"),
        [(name, *(form(row[column]) for form, column in zip(formats, columns))) for name, row in rows.items()],
    )


def _comparison(record: dict[str, Any]) -> str:
    published = record["published"]
    million, giga = f"{published['parameters_m']:g}", f"{published['gflops']:g}"
    parameters = sum(part["parameters"] for part in record["parts"].values())
    without, every = record["multiply_adds_without_sampling"], record["multiply_adds"]
    rows = [
        ("parameters, M", _mega(parameters), million, f"{parameters / published['parameters_m'] / 1e6:.3f}"),
        *(
            (name, _giga(count), giga, f"{count / published['gflops'] / 1e9:.3f}")
            for name, count in (
                ("G multiply-adds, all", every),
                ("G multiply-adds, deformable sampling apart", without),
                ("G operations, two a multiply-add", 2 * every),
            )
        ),
    ]
    return format_table((f"{published['source']}", "here", "published", "ratio"), rows)


def _mega(number: float) -> str:
    return f"{number / 1e6:.2f}"


def _giga(number: float) -> str:
    return f"{number / 1e9:.2f}"


def _mebibytes(number: float) -> str:
    return f"{number / 2**20:.1f}"
