"""`tools/export_model.py`: a model as a file for ONNX Runtime, OpenVINO, TensorRT, or `torch.export`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grounding_dino.cli.arguments import picture_size, program

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
OPSETS = (18, 19, 20)
EXAMPLE_SIZE = (256, 320)
# What says which model is exported, and how: of no use where --from begins with a file.
OF_MODELS = ("config_file", "weights", "random_weights", "opset", "size", "check")
EPILOG = """\
The file takes any number of pictures of any size, and texts of any length. Its inputs and outputs are described in
grounding_dino/export/graph.py; grounding_dino.onnx_predictor.OnnxPredictor("model.onnx") calls it with pictures and
names, without torch. A torch file calls this package's operator: import grounding_dino.ops before torch.export.load.
examples:
  %(prog)s --output shapes_tiny.onnx
  %(prog)s --config-file swin_t_ogc --weights groundingdino_swint_ogc.pth --output swin_t.onnx
  %(prog)s --config-file swin_t_ogc --weights groundingdino_swint_ogc.pth --format torch --output swin_t.pt2
  %(prog)s --output shapes_tiny_int8.onnx --quantize int8 --evaluate shapes_val
  %(prog)s --from shapes_tiny.onnx --evaluate shapes_val"""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog=program("export_model.py"),
        description="Write a model for another runtime, and check there that it finds what it found here.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file", default="shapes_tiny", metavar="FILE", help="path or short name (default: the shipped model's)"
    )
    parser.add_argument(
        "--weights", default="", help="checkpoint of any origin; by default the shipped or published one"
    )
    parser.add_argument(
        "--random-weights", action="store_true", help="export the model as it is before any training, to try a runtime"
    )
    parser.add_argument("--format", choices=FORMATS, help="by default what the ending of --output says")
    parser.add_argument("--output", metavar="FILE", help="the file to write, .onnx or .pt2")
    parser.add_argument(
        "--from", dest="source", metavar="FILE", help="begin with this .onnx file, written before, instead of a model"
    )
    parser.add_argument(
        "--quantize",
        choices=("int8",),
        help="keep large matrices in 8 bits (dynamic quantisation): a third of the size, see --evaluate for the cost",
    )
    parser.add_argument(
        "--evaluate",
        action="append",
        default=[],
        metavar="SET",
        help="measure the .onnx file in a registered data set, before and after --quantize; may be repeated",
    )
    parser.add_argument(
        "--opset", type=int, choices=OPSETS, default=OPSETS[0], help=f"of ONNX's operators (default {OPSETS[0]})"
    )
    parser.add_argument(
        "--size",
        type=picture_size,
        default=EXAMPLE_SIZE,
        metavar="HxW",
        help=f"of the example that is traced and checked (default {EXAMPLE_SIZE[0]}x{EXAMPLE_SIZE[1]})",
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare a picture's result in the written file with the model's; more than 0.001 apart is an error",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="override the configuration; come last"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 1 also where the file's results are not the model's."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    kind = _kind(parser, arguments)
    try:
        if arguments.source:
            return change_file(arguments)
        return export(arguments, kind)
    except (ValueError, TypeError, OSError, KeyError, ImportError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"error: {reason}", file=sys.stderr)
        return 1


def _kind(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """The format to write; ends the program where arguments do not go together."""
    if not arguments.output and not (arguments.source and arguments.evaluate and not arguments.quantize):
        parser.error("name the file to write with --output (--from FILE --evaluate SET alone writes none)")
    if arguments.output and arguments.source and not arguments.quantize:
        parser.error("with --from there is nothing to write to --output but what --quantize makes of the file")
    endings = {ending: name for name, ending in FORMATS.items()}
    kind: str | None = arguments.format or endings.get(Path(arguments.output or arguments.source).suffix)
    if kind is None:
        parser.error(f"--output {arguments.output!r} ends in neither .onnx nor .pt2; say --format onnx or torch")
    if kind != "onnx" and (arguments.source or arguments.quantize or arguments.evaluate):
        parser.error("--from, --quantize and --evaluate are of .onnx files")
    unread = [name for name in OF_MODELS if arguments.source and getattr(arguments, name) != parser.get_default(name)]
    if unread:
        flag = {"check": "no-check"}.get(unread[0], unread[0]).replace("_", "-")
        parser.error(
            f"--{flag} is about exporting a model, but --from begins with a file that was exported; leave one out"
        )
    if arguments.source and arguments.opts and not arguments.evaluate:
        parser.error(f"with --from, options such as {arguments.opts[0]} are of --evaluate, which is not asked for")
    if arguments.weights and arguments.random_weights:
        parser.error("--weights and --random-weights exclude each other")
    return kind


def change_file(arguments: argparse.Namespace) -> int:
    """Quantise and evaluate a file that was written before; the exit code.

    Raises:
        FileNotFoundError, ValueError: no such file or data set, or one that cannot be evaluated.
        ImportError: a package is missing.
    """
    if not os.path.isfile(arguments.source):
        raise FileNotFoundError(f"there is no file {arguments.source!r} (--from)")
    _evaluate(arguments.source, "as it is", arguments)
    if arguments.quantize:
        from grounding_dino.export.trace import check_folder

        check_folder(arguments.output)
        _quantize(arguments.source, arguments)
    return 0


def _quantize(source: str, arguments: argparse.Namespace) -> None:
    from grounding_dino.export.quantize import quantize_file

    before = os.path.getsize(source) / 1e6
    count = quantize_file(source, arguments.output)
    after = os.path.getsize(arguments.output) / 1e6
    print(f"{arguments.output}: {count} matrices in {arguments.quantize}, {after:.1f} MB instead of {before:.1f}")
    _evaluate(arguments.output, arguments.quantize, arguments)


def _evaluate(path: str, what: str, arguments: argparse.Namespace) -> None:
    """Print the metrics of each task in each data set of --evaluate."""
    for name in arguments.evaluate:
        from grounding_dino.export.evaluate import evaluate_file

        for task, metrics in evaluate_file(path, name, arguments.opts).items():
            listed = ", ".join(f"{key} {value:.2f}" for key, value in metrics.items() if "-" not in key)
            print(f"{path} ({what}), {name}, {task}: {listed}", flush=True)


def export(arguments: argparse.Namespace, kind: str) -> int:
    """Build the model, write it and check the file; arguments as the command's. The exit code.

    Raises:
        FileNotFoundError, ValueError: no such configuration, no weights, or a model that cannot be exported.
        ImportError: a package is missing.
    """
    from grounding_dino.export.describe import describe_model
    from grounding_dino.export.graph import graph_of
    from grounding_dino.export.onnx_file import check_packages
    from grounding_dino.export.trace import check_folder

    if kind == "onnx":
        check_packages()
    check_folder(arguments.output)
    cfg, model = _model(arguments)
    graph = graph_of(model)
    description = describe_model(cfg, model, arguments.config_file)
    start = time.perf_counter()
    _say("tracing and writing; this takes a minute or more")
    differences = _write(kind, graph, description, arguments)
    size = os.path.getsize(arguments.output) / 1e6
    print(f"{arguments.output}: {kind}, {size:.1f} MB, {time.perf_counter() - start:.0f} s")
    code = _report(differences) if arguments.check else 0
    _evaluate(arguments.output, "float32", arguments)
    if arguments.quantize and code == 0:
        _quantize(arguments.output, arguments)
    return code


def _model(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The configuration and its model on the CPU, in float32.

    Raises:
        ValueError: the configuration asks for half precision.
    """
    from grounding_dino.model_zoo import build_model, find_weights, load_cfg

    cfg = load_cfg(arguments.config_file, arguments.opts)
    cfg.MODEL.DEVICE = "cpu"
    cfg.TEST.COMPILE_ON = cfg.TEST.CUDA_GRAPHS_ON = False
    if cfg.TEST.PRECISION != "float32":
        raise ValueError(
            f"TEST.PRECISION is {cfg.TEST.PRECISION!r}, but models are exported in float32; add TEST.PRECISION "
            "float32, and let the runtime choose another precision"
        )
    if arguments.random_weights:
        import torch

        torch.manual_seed(max(0, cfg.SEED))
        cfg.MODEL.WEIGHTS = ""
        return cfg, build_model(cfg)
    weights = arguments.weights or find_weights(cfg, arguments.config_file, arguments.opts)
    return cfg, build_model(cfg, weights)


def _write(kind: str, graph: Any, description: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """Write the file; the differences of its results, nothing if they are not asked for."""
    if kind == "torch":
        from grounding_dino.export.trace import check_program, save_program, trace

        traced = trace(graph, arguments.size)
        save_program(traced, arguments.output, description)
        return check_program(arguments.output, graph, arguments.size) if arguments.check else {}
    from grounding_dino.export.onnx_file import check_file, write_onnx

    write_onnx(graph, description, arguments.output, arguments.size, arguments.opset)
    return check_file(arguments.output, graph, arguments.size) if arguments.check else {}


def _report(differences: dict[str, float]) -> int:
    from grounding_dino.export.differences import TOLERANCE

    listed = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    print(f"largest difference from the model for one picture: {listed}")
    if max(differences.values()) > TOLERANCE:
        print(
            f"error: the file does not find what the model finds (more than {TOLERANCE:g} apart); do not use it. Try "
            "another --size: pictures in which many places are alike are ranked differently within rounding",
            file=sys.stderr,
        )
        return 1
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
