"""The options that choose a model, the same words for all commands that run one."""

from __future__ import annotations

import argparse


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--config-file`, `--weights`, `--device` and `--opts`, as `load_predictor` takes them."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--config-file",
        default="shapes_tiny",
        metavar="FILE",
        help="a .yaml file, a short name, a folder with a model, or owner/name of a hub (default: shapes_tiny)",
    )
    model.add_argument("--weights", metavar="FILE", help="a checkpoint of any origin: file, folder, URL or owner/name")
    model.add_argument("--device", help="cuda, cpu, ... (default: a GPU where there is one)")
    model.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="override the configuration; comes last",
    )
