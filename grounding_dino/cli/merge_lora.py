"""`tools/merge_lora.py`: adapters and the weights that they were trained on as one checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from grounding_dino.cli.arguments import program


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog=program("merge_lora.py"),
        description="Add LoRA adapters (MODEL.LORA of a training) to the weights that they were trained on, and write "
        "a checkpoint of this project that needs neither of them, nor the package peft.",
        epilog="example: %(prog)s --config-file shapes_tiny output/cells/adapter cells.safetensors",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="the folder adapter or adapter_best of a training")
    parser.add_argument("output", metavar="OUTPUT", help="the file to write, .pth or .safetensors")
    parser.add_argument("--config-file", required=True, help="the configuration of the training (path or short name)")
    parser.add_argument(
        "--weights", default="", help="the weights that the training started from; by default the configuration's"
    )
    parser.add_argument("--half", action="store_true", help="store floating-point tensors in 16 bits")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    from grounding_dino.checkpoint.files import CheckpointError

    try:
        merge(arguments.config_file, arguments.weights, arguments.adapter, arguments.output, arguments.half)
    except (CheckpointError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def merge(config: str, weights: str, adapter: str, output: str, half: bool = False) -> None:
    """Write `weights` (of the configuration where "") with `adapter` to `output`; arguments as the command's.

    Raises:
        CheckpointError: a file cannot be read, or the adapter does not fit the weights.
        FileNotFoundError, ValueError: no such configuration, weights unknown, or no peft.
    """
    from grounding_dino.checkpoint.saving import save_checkpoint
    from grounding_dino.model_zoo import build_model, find_weights, load_cfg

    opts = ["MODEL.DEVICE", "cpu", "MODEL.LORA.WEIGHTS", adapter, *(["MODEL.WEIGHTS", weights] if weights else [])]
    cfg = load_cfg(config, opts)
    base = cfg.MODEL.WEIGHTS or find_weights(cfg, config)  # what a recipe starts from, not what came out of it
    model = build_model(cfg, base)
    save_checkpoint(output, model.state_dict(), half=half)
    print(f"{base} with {adapter} -> {output}: {len(model.state_dict())} tensors")
