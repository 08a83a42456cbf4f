"""`tools/convert_weights.py`: a checkpoint of any origin in any origin's format."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from grounding_dino.cli.arguments import program

if TYPE_CHECKING:
    from grounding_dino.checkpoint.huggingface import HeadCounts
    from grounding_dino.checkpoint.origins import LoadedCheckpoint

    from detectron2.config import CfgNode
    from torch import Tensor

FORMATS = ("official", "mmdet", "huggingface", "ours")


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog=program("convert_weights.py"),
        description="Convert a checkpoint of any origin, which is recognised by its names. Tensors are renamed and "
        "reordered, never rounded (unless --half): converting back gives the same bits.",
        epilog="examples: %(prog)s --to huggingface groundingdino_swint_ogc.pth swin_t_hf; "
        "%(prog)s --warm-start --config-file mask_dino/coco/r50_instance checkpoint0011_4scale.pth start.pth",
    )
    parser.add_argument("input", metavar="INPUT", help="file, Hugging Face folder, or URL")
    parser.add_argument(
        "output", metavar="OUTPUT", help=".pth; .pth or .safetensors for ours; a folder for huggingface"
    )
    parser.add_argument(
        "--to",
        choices=FORMATS,
        help="the format of OUTPUT; ours where --warm-start is given. An error says which formats the model has: "
        "huggingface is for Grounding DINO and MM-Grounding-DINO, official not for MM-Grounding-DINO",
    )
    parser.add_argument("--half", action="store_true", help="store floating-point tensors in 16 bits")
    parser.add_argument(
        "--config-file",
        default="",
        help="check that the tensors fit this configuration (path or short name), and take numbers of heads from it",
    )
    parser.add_argument(
        "--warm-start",
        action="store_true",
        help="write a checkpoint of the model of --config-file: what fits is taken from INPUT, the rest is initialised "
        "as for a training, and a table says which is which",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="override the configuration of --warm-start, such as MODEL.WEIGHTS_IGNORE \"['^backbone']\"; comes last",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.warm_start and not arguments.config_file:
        parser.error("--warm-start needs --config-file, the configuration of the model to start")
    if arguments.opts and not arguments.warm_start:
        parser.error("--opts changes the model of --warm-start, which is not given")
    if not arguments.warm_start and not arguments.to:
        parser.error("--to is needed: the format of OUTPUT")
    try:
        if arguments.warm_start:
            to = arguments.to or "ours"
            warm_start(arguments.input, arguments.output, arguments.config_file, to, arguments.half, arguments.opts)
        else:
            convert(arguments.input, arguments.output, arguments.to, arguments.half, arguments.config_file)
    except (ValueError, OSError) as error:
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
    from grounding_dino.checkpoint.huggingface import HeadCounts
    from grounding_dino.checkpoint.origins import load_checkpoint
    from grounding_dino.checkpoint.report import listed

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
    _save(output, checkpoint.state, checkpoint.extras, to, half, heads, vocabulary)
    kept = f", {len(checkpoint.extras)} more kept beside them" if checkpoint.extras else ""
    print(f"{source} ({checkpoint.origin}) -> {output} ({to}): {len(checkpoint.state)} tensors{kept}")


def warm_start(
    source: str, output: str, config_file: str, to: str = "ours", half: bool = False, opts: Sequence[str] = ()
) -> None:
    """Write a checkpoint of the model of `config_file` with what fits of `source`, and say what became of its tensors.

    The rest of the model is initialised with the seed 0 (or SEED), so that the file is the same every time.

    Raises:
        CheckpointError: it cannot be read, nothing fits, or it is of another backbone.
        ValueError: `opts` are no keys and values of the configuration.
    """
    import grounding_dino.modeling  # noqa: F401  # fills the registries
    from grounding_dino.checkpoint.huggingface import HeadCounts
    from grounding_dino.checkpoint.loading import load_weights
    from grounding_dino.model_zoo import load_cfg

    import torch
    from detectron2.modeling import build_model

    cfg = load_cfg(config_file, opts)
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(max(0, cfg.SEED))
    model = build_model(cfg)
    report = load_weights(model, source, cfg.MODEL.WEIGHTS_IGNORE, warm_start=True)
    heads = _head_counts(cfg) if to == "huggingface" else HeadCounts()
    _save(output, model.state_dict(), {}, to, half, heads, cfg.MODEL.TEXT_ENCODER.VOCABULARY)
    print(report.tables())
    print(f"{source} ({report.origin}) -> {output} ({to}): {len(report.taken)} tensors taken, {len(report.new)} new")


def _save(
    output: str,
    state: Mapping[str, Tensor],
    extras: Mapping[str, Tensor],
    to: str,
    half: bool,
    heads: HeadCounts,
    vocabulary: str,
) -> None:
    from grounding_dino.checkpoint.huggingface import save_huggingface_folder
    from grounding_dino.checkpoint.saving import save_checkpoint

    if to == "huggingface":
        save_huggingface_folder(output, state, extras, half, heads, vocabulary)
    else:
        save_checkpoint(output, state, extras, to, half)


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
