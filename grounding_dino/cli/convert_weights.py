"""`tools/convert_weights.py`: a checkpoint of any origin in any origin's format."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grounding_dino.checkpoint.huggingface import HeadCounts
    from grounding_dino.checkpoint.origins import LoadedCheckpoint

    from detectron2.config import CfgNode

FORMATS = ("official", "mmdet", "huggingface", "ours")


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="convert_weights.py",
        description="Convert a checkpoint of any origin, which is recognised by its names. Tensors are renamed and "
        "reordered, never rounded (unless --half): converting back gives the same bits.",
        epilog="example: convert_weights.py --to huggingface groundingdino_swint_ogc.pth swin_t_hf",
    )
    parser.add_argument("input", metavar="INPUT", help="file, Hugging Face folder, or URL")
    parser.add_argument(
        "output", metavar="OUTPUT", help=".pth; .pth or .safetensors for ours; a folder for huggingface"
    )
    parser.add_argument("--to", choices=FORMATS, required=True, help="the format of OUTPUT")
    parser.add_argument("--half", action="store_true", help="store floating-point tensors in 16 bits")
    parser.add_argument(
        "--config-file",
        default="",
        help="check that the tensors fit this configuration (path or short name), and take numbers of heads from it",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    from grounding_dino.checkpoint.files import CheckpointError

    arguments = build_parser().parse_args(argv)
    try:
        convert(arguments.input, arguments.output, arguments.to, arguments.half, arguments.config_file)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def convert(source: str, output: str, to: str, half: bool = False, config_file: str = "") -> None:
    """Write the checkpoint `source` to `output` in the format `to`; arguments as the command's.

    Raises:
        CheckpointError: it cannot be read, holds names that no table knows, or has no form in that format.
    """
    from grounding_dino.checkpoint.download import local_path
    from grounding_dino.checkpoint.files import CheckpointError
    from grounding_dino.checkpoint.huggingface import HeadCounts, save_huggingface_folder
    from grounding_dino.checkpoint.loading import listed
    from grounding_dino.checkpoint.origins import load_checkpoint
    from grounding_dino.checkpoint.saving import save_checkpoint

    checkpoint = load_checkpoint(local_path(source), mmap=True)
    if checkpoint.unknown:
        raise CheckpointError(
            f"{source} ({checkpoint.origin}) holds {len(checkpoint.unknown)} tensors of unknown names: "
            f"{listed(checkpoint.unknown)}"
        )
    heads, vocabulary = HeadCounts(), ""
    if config_file:
        from grounding_dino.model_zoo import load_cfg

        cfg = load_cfg(config_file)
        _check_fit(checkpoint, cfg)
        heads, vocabulary = _head_counts(cfg), cfg.MODEL.TEXT_ENCODER.VOCABULARY
    if to == "huggingface":
        save_huggingface_folder(output, checkpoint.state, checkpoint.extras, half, heads, vocabulary)
    else:
        save_checkpoint(output, checkpoint.state, checkpoint.extras, to, half)
    kept = f", {len(checkpoint.extras)} more kept beside them" if checkpoint.extras else ""
    print(f"{source} ({checkpoint.origin}) -> {output} ({to}): {len(checkpoint.state)} tensors{kept}")


def _check_fit(checkpoint: LoadedCheckpoint, cfg: CfgNode) -> None:
    import grounding_dino.modeling  # noqa: F401  # fills the registries
    from grounding_dino.checkpoint.loading import load_checkpoint_into

    from detectron2.modeling import build_model

    cfg.MODEL.DEVICE = "cpu"
    load_checkpoint_into(build_model(cfg), checkpoint)


def _head_counts(cfg: CfgNode) -> HeadCounts:
    from grounding_dino.checkpoint.files import CheckpointError
    from grounding_dino.checkpoint.huggingface import HeadCounts

    encoder, decoder = cfg.MODEL.PIXEL_DECODER, cfg.MODEL.TRANSFORMER_DECODER
    if encoder.NUM_POINTS != decoder.NUM_POINTS:
        raise CheckpointError(
            f"NUM_POINTS is {encoder.NUM_POINTS} in the encoder and {decoder.NUM_POINTS} in the decoder: conversion to "
            "Hugging Face's format expects one number"
        )
    return HeadCounts(decoder.NUM_POINTS, decoder.NUM_HEADS, cfg.MODEL.TEXT_ENCODER.NUM_HEADS)
