"""`grounding-dino COMMAND ...`, also `python -m grounding_dino COMMAND ...`: every command line under one name.

The commands are the `main` of the modules beside this one, as the scripts of a checkout call them. Only the one that is
asked for is imported, so that the list of them is there at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

from grounding_dino import __version__
from grounding_dino.cli.arguments import ENTRY_POINT, INTERRUPTED

# Command -> module in grounding_dino.cli, and what it does. In the order in which they are listed.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "detect in pictures, folders, a video or a webcam"),
    "app": ("app", "a web page to try pictures and prompts"),
    "label": ("label_images", "label a folder, shards or tables of pictures: COCO, YOLO, VOC, ODVG"),
    "calibrate": ("calibrate_thresholds", "a threshold for each category from a small labelled set"),
    "train": ("train", "train, resume or evaluate"),
    "slurm-train": ("slurm_train", "the same as a job of a SLURM cluster"),
    "export": ("export_model", "write a model for ONNX Runtime, OpenVINO, TensorRT or torch.export"),
    "convert": ("convert_weights", "a checkpoint from one publisher's format into another's"),
    "merge-lora": ("merge_lora", "adapters and the weights below them as one checkpoint"),
    "hub": ("hub", "save, push and pull models with their card, as folders of a model hub"),
    "check-data": ("check_data", "look through data sets before a training"),
    "convert-data": ("convert_data", "annotations between COCO, ODVG, MDETR and referring expressions"),
    "visualize-data": ("visualize_data", "draw what a model sees in training"),
    "analyze": ("analyze_model", "parameters, operations and memory of a model, part by part"),
    "benchmark": ("benchmark", "measure speed on this machine"),
    "gpu-check": ("gpu_check", "check kernels, model and training on this machine's GPU"),
    "doctor": ("doctor", "what is installed, and the first thing to fix"),
}


def build_parser() -> argparse.ArgumentParser:
    """The first word of the command line; each command has a parser of its own."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name.ljust(width)}  {line}" for name, (_, line) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog=ENTRY_POINT,
        usage="%(prog)s COMMAND [ARGUMENTS]",
        description="Text-prompted detection, grounding and segmentation.",
        epilog=f"commands:\n{listing}\n\n%(prog)s COMMAND --help explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", help="one of those below")
    parser.add_argument("--version", action="version", version=f"{ENTRY_POINT} {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names with the others; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    name = parser.parse_args(arguments[:1]).command
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(COMMANDS)}"
        parser.error(f"there is no command {name!r}; {hint}")
    # by which parsers and messages call the command; processes that it starts get it, too
    sys.argv = [f"{ENTRY_POINT} {name}", *arguments[1:]]
    try:
        module = importlib.import_module(f"grounding_dino.cli.{COMMANDS[name][0]}")
        return int(module.main(arguments[1:]) or 0)
    except KeyboardInterrupt:
        print(f"\n{ENTRY_POINT} {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
