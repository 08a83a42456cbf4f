"""`tools/benchmark.py`: how fast models, their operators and their training are on this machine, beside others."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grounding_dino.cli.arguments import count, picture_size, program
from grounding_dino.cli.benchmark_folder import add_folder_arguments, folder_report
from grounding_dino.cli.benchmark_inference import EXPORTED, OURS, SIDES, THEIRS, Plan, measure_model
from grounding_dino.cli.benchmark_inputs import DTYPES
from grounding_dino.cli.benchmark_operator import deformable_attention_inputs, measure, measure_operator
from grounding_dino.cli.benchmark_report import machine, operator_table, report, training_report
from grounding_dino.cli.benchmark_startup import measure_startup, startup_table
from grounding_dino.cli.benchmark_training import (
    OPTIONS,
    default_options,
    load_training_config,
    measure_against,
    measure_training,
    training_rows,
)
from grounding_dino.cli.benchmark_workers import WorkerError
from grounding_dino.cli.data_arguments import add_dataset_arguments
from grounding_dino.cli.demo import prepare_json
from grounding_dino.model_zoo import get_config_file, resolve_device
from grounding_dino.ops import kernel_status
from grounding_dino.tables import format_table

import torch

EPILOG = """\
Without --op and --train, models are measured: ours beside the Grounding DINO of `transformers`, with the same random
weights, pictures and prompts, each side in a process of its own, run by run in turn. Ours is timed from pictures to
detections, theirs from tensors to logits and boxes. Models that transformers has not are measured alone. Operations
count two a multiply-add; a share of the ceiling is of this machine's own matrix products in the same precision.
examples:
  %(prog)s --config-file swin_t_ogc --size 800x1200 --parts --json times.json
  %(prog)s --config-file swin_t_ogc --categories 80 --text-cache on --parts --sides ours
  %(prog)s --config-file swin_t_ogc --categories 1203 --text-cache on --parts --sides ours --dtype bf16
  %(prog)s --config-file dino/r50_4scale_12ep --config-file mask_dino/coco/r50_instance --size 800x1200
  %(prog)s --config-file swin_t_ogc --onnx swin_t.onnx --dtype fp32 --size 800x1200
  %(prog)s --op --queries 1000 5000 20000 80000
  %(prog)s --train --config-file shapes_tiny --option "bf16 autocast"
  %(prog)s --train --against transformers --config-file swin_t_ogc --size 256x320 --batch 2 --categories 80"""
REPEATS, MODEL_REPEATS = 7, 3
# The flags that each kind of measurement reads, beside those of all: --json and --repeats.
READ = {
    "models": "config_file size dtype device batch categories sides onnx text_cache parts opts",
    "--op": "size dtype device queries scattered",
    "--train": "config_file device option dataset opts",
    "--train --against": "config_file size dtype device batch categories sides opts",
    "--startup": "config_file",
    "--folder": "config_file device batch pictures workers threshold opts",
}


def build_parser() -> argparse.ArgumentParser:
    """The flags; each kind of measurement reads some of them."""
    parser = argparse.ArgumentParser(
        prog=program("benchmark.py"),
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--op", action="store_true", help="measure deformable attention against its PyTorch twin")
    what.add_argument("--train", action="store_true", help="measure training steps, plain and with each --option")
    what.add_argument("--startup", action="store_true", help="measure imports, --help and loading of a checkpoint")
    what.add_argument("--folder", nargs="+", metavar="PATH", help="measure the demo's run on these pictures")
    parser.add_argument(
        "--config-file",
        action="append",
        default=[],
        metavar="FILE",
        help="a path, or the short name of a packaged config (swin_t_ogc); repeatable where models are measured",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
    parser.add_argument(
        "--size", type=picture_size, default=(800, 1200), metavar="HxW", help="of the pictures (default 800x1200)"
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["fp32", "bf16"], help="fp32, others by autocast (default both)"
    )
    parser.add_argument("--device", help="cpu or cuda (default cpu; --train: MODEL.DEVICE)")
    parser.add_argument(
        "--repeats",
        type=count,
        help=f"rounds, of which the median is given (default {REPEATS}, models {MODEL_REPEATS})",
    )
    models = parser.add_argument_group("models, and training against transformers")
    models.add_argument("--batch", type=count, default=1, metavar="N", help="pictures at once (default 1)")
    models.add_argument(
        "--categories", type=count, default=1, metavar="N", help="names looked for: 1, 80 (COCO's), 1203 (default 1)"
    )
    models.add_argument(
        "--sides",
        nargs="+",
        choices=SIDES,
        help="; ".join(f"{k}: {v}" for k, v in SIDES.items())
        + f" (default {OURS} and {THEIRS}, and tuned on a CPU; {OURS} and {' and '.join(EXPORTED)} with --onnx)",
    )
    models.add_argument(
        "--onnx",
        metavar="FILE",
        help="tools/export_model.py's file of the model, for the sides onnxruntime and openvino",
    )
    models.add_argument(
        "--text-cache", choices=("on", "off"), default="off", help="whether ours keeps text features (default off)"
    )
    models.add_argument("--parts", action="store_true", help="also the time and operations of each part")
    operator = parser.add_argument_group("--op")
    operator.add_argument("--queries", type=count, nargs="*", help="numbers of queries (default: one a cell)")
    operator.add_argument("--scattered", action="store_true", help="points anywhere instead of around their query")
    training = parser.add_argument_group("--train")
    training.add_argument("--option", action="append", choices=OPTIONS, help="of training (default: all); repeatable")
    training.add_argument(
        "--against", choices=("transformers",), help="compare steps on made-up pictures of --size instead of options"
    )
    add_folder_arguments(parser)
    add_dataset_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the flags name, prints a table and returns 0."""
    parser = build_parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    _check_read(parser, args)
    for status in kernel_status():
        print(f"{status.name}: {status.text}")
    facts = machine(args.device or "cpu")
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    try:
        prepare_json(None if args.json is None else str(args.json))
        if args.op:
            result: Any = _operators(args)
        elif args.startup:
            result = measure_startup((args.config_file or ["swin_t_ogc"])[0], args.repeats or MODEL_REPEATS)
            print(startup_table(result))
        elif args.folder:
            result = {"machine": facts, "folder": folder_report(args, args.repeats or MODEL_REPEATS)}
        elif args.train:
            result = _against(args) if args.against else _training(args)
        else:
            result = {"machine": facts, "models": _models(args)}
    except (ValueError, OSError, WorkerError) as error:
        parser.error(str(error))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a sentence where the flags do not fit each other or the machine."""
    try:
        resolve_device(args.device)
    except ValueError as error:
        parser.error(f"--device: {error}")
    if not (args.op or args.train or args.startup or args.folder or args.config_file):
        parser.error("say what to measure: models by --config-file, --op, --train, --startup, or --folder")
    if (args.op or args.train or args.startup) and len(args.config_file) > 1:
        parser.error("--config-file: one configuration at a time with --train and --startup, and none with --op")
    if args.against and not (args.train and args.config_file):
        parser.error("--against is about training: give --train and --config-file as well")
    if args.sides and OURS not in args.sides:
        parser.error("--sides: name 'ours' as well, the side that others are compared with")
    if args.onnx and (len(args.config_file) != 1 or not Path(args.onnx).is_file()):
        parser.error(f"--onnx {args.onnx!r}: name one file that exists, and the one --config-file that it was made of")
    if not args.onnx and set(args.sides or ()) & set(EXPORTED):
        parser.error(f"--sides {' '.join(EXPORTED)}: give the exported file with --onnx")
    if args.against and "compiled" in (args.sides or ()):
        parser.error("--sides compiled: training is measured beside transformers as it comes, and tuned")
    if not (args.op or args.train) and args.dataset:
        parser.error("--dataset is for --train; models are measured on made-up pictures")


def _check_read(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a sentence where a flag would be without effect."""
    kinds = [f"--{name}" for name in ("op", "train", "startup", "folder") if getattr(args, name)]
    kind = "--train --against" if args.against else (kinds or ["models"])[0]
    every = {name for names in READ.values() for name in names.split()}
    for name in sorted(every - set(READ[kind].split())):
        if getattr(args, name) not in (parser.get_default(name), [], None):
            flag = "KEY VALUE pairs have" if name == "opts" else f"--{name.replace('_', '-')} has"
            parser.error(f"{flag} no effect on {kind}; leave {'them' if name == 'opts' else 'it'} out")
    for key, name in () if kind == "--train" else (("MODEL.DEVICE", "device"), ("TEST.PRECISION", "dtype")):
        if key in args.opts[::2] and name in READ[kind].split():
            parser.error(f"{key} has no effect on {kind}; say it with --{name}")


def _operators(args: argparse.Namespace) -> list[dict[str, Any]]:
    records = []
    for queries in args.queries or [None]:
        arguments = deformable_attention_inputs(args.size, queries=queries, scattered=args.scattered)
        records += measure_operator(arguments, args.dtype, args.device or "cpu", args.repeats or REPEATS)
    print(operator_table(records))
    return records


def _training(args: argparse.Namespace) -> list[dict[str, Any]]:
    args.config_file = (args.config_file or [""])[0]
    cfg = load_training_config(args)
    if args.device:
        cfg.MODEL.DEVICE = args.device
    clock = functools.partial(measure, device=cfg.MODEL.DEVICE)
    records = measure_training(cfg, args.option or default_options(cfg), clock, args.repeats or REPEATS)
    head = ("training", "pictures/s, median (range)", "step", "loading's share")
    print(format_table(head, training_rows(records)))
    return records


def _plan(args: argparse.Namespace) -> Plan:
    # On a GPU the C library's allocator decides nothing, and each side holds memory that the others want.
    on_gpu = torch.device(args.device or "cpu").type == "cuda"
    sides = [OURS, *EXPORTED] if args.onnx else [OURS, THEIRS] if args.train or on_gpu else [OURS, THEIRS, "tuned"]
    return Plan(
        size=args.size,
        batch=args.batch,
        dtypes=args.dtype,
        device=args.device or "cpu",
        categories=args.categories,
        sides=args.sides or sides,
        text_kept=args.text_cache == "on",
        with_parts=args.parts,
        repeats=args.repeats or MODEL_REPEATS,
        exported=args.onnx or "",
    )


def _against(args: argparse.Namespace) -> dict[str, Any]:
    record = measure_against(args.config_file[0], args.opts, _plan(args))
    print(training_report(record))
    return record


def _models(args: argparse.Namespace) -> list[dict[str, Any]]:
    for config in args.config_file:
        get_config_file(config)  # before the first is measured, which takes minutes
    records = []
    for config in args.config_file:
        records.append(measure_model(config, args.opts, _plan(args)))
        print(report(records[-1]), flush=True)
    return records
