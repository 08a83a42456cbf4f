"""Which data sets a tool looks at, and as which configuration treats them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from grounding_dino.cli.train import load_config

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# What a configuration says about its own data sets, and what stands there for others.
_OF_OWN_SETS: dict[str, list[str] | tuple[str, ...]] = {
    **dict.fromkeys(("DATASETS.TEST", "TEST.RETAINED"), ()),
    **dict.fromkeys(("DATASETS.WEIGHTS", "DATASETS.RATIOS", "DATALOADER.REPEAT_SETS"), []),
}


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """`--config-file`, `--dataset` and KEY VALUE pairs, much as `train_net.py` takes them."""
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="a path, or the short name of a packaged config (shapes_tiny)"
    )
    add_dataset_arguments(parser)


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """`--dataset` and KEY VALUE pairs alone, for a tool that takes configurations in its own way."""
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME[=annotations:image_folder]",
        help="look at this data set instead of DATASETS.TRAIN, registered before if paths are given; repeatable",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys and values, as of train_net.py"
    )


def load_data_config(args: argparse.Namespace) -> CfgNode:
    """The configuration with the data sets asked for in DATASETS.TRAIN; it can be changed.

    Where the KEY VALUE pairs have DATASETS.TRAIN, `--dataset` only registers. Where it names the data sets itself,
    those that the configuration evaluates on are left out, and how it mixes its own, unless the pairs say so.

    Raises:
        FileNotFoundError: no such configuration.
        ValueError: an unknown key, a value that does not fit, or a data set that is not written as it has to be.
    """
    from grounding_dino.data.datasets.groups import expand_groups

    names = [text.partition("=")[0].strip() for text in args.dataset]
    asked = argparse.Namespace(
        config_file=args.config_file,
        opts=args.opts,
        dataset=[text for text in args.dataset if "=" in text],
        warm_start=False,
        num_gpus=1,
    )
    cfg = load_config(asked)
    cfg.defrost()
    if names and "DATASETS.TRAIN" not in args.opts[::2]:
        cfg.DATASETS.TRAIN = tuple(expand_groups(names))
        for key, nothing in _OF_OWN_SETS.items():
            if key not in args.opts[::2]:
                cfg.merge_from_list([key, nothing])
    return cfg
