"""`tools/visualize_data.py`: draws what a model sees in training."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grounding_dino.cli.arguments import count, program
from grounding_dino.cli.data_arguments import add_data_arguments, load_data_config

if TYPE_CHECKING:
    from detectron2.config import CfgNode

SHEET = "contact_sheet.png"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=program("visualize_data.py"),
        description="Draw the first pictures of a training as the model gets them: after augmentation, with boxes, "
        "masks and labels, and below each its prompt with the words marked that the objects are the answers to.",
    )
    add_data_arguments(parser)
    parser.add_argument("--num", type=count, default=16, help="pictures to draw (16)")
    parser.add_argument(
        "--output", type=Path, default=Path("output/data"), help="folder for the drawings (output/data)"
    )
    return parser


def training_samples(cfg: CfgNode) -> Iterator[dict[str, Any]]:
    """The samples of a training in its order, which SEED says (-1 counts as 0), without end.

    Raises:
        ValueError: a data set of DATASETS.TRAIN that cannot be trained on, or a key of INPUT out of range.
    """
    from grounding_dino.data.loader import build_train_loader

    cfg = cfg.clone()
    # What a sample looks like does not depend on the batch; nor is there a model that could have too few label rows.
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 1, "MODEL.DENOISING.ENABLED_ON", False])
    loader = build_train_loader(cfg, seed=max(cfg.SEED, 0))
    return itertools.chain.from_iterable(iter(loader))


def write_drawings(cfg: CfgNode, samples: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """A .png of each sample, and a contact sheet of all; returns the paths."""
    from grounding_dino.data.sample_drawing import contact_sheet, draw_sample
    from grounding_dino.text.prompt_builder import PromptBuilder

    from PIL import Image

    prompts = PromptBuilder.from_config(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    drawings, paths = [], []
    for number, sample in enumerate(samples):
        drawings.append(draw_sample(sample, prompts, cfg.INPUT.FORMAT))
        paths.append(folder / f"{number:03d}_{Path(sample.get('file_name', 'picture')).stem}.png")
        Image.fromarray(drawings[-1]).save(paths[-1])
    Image.fromarray(contact_sheet(drawings)).save(folder / SHEET)
    return [*paths, folder / SHEET]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `tools/visualize_data.py`; 0, or a sentence and exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    from grounding_dino.engine.environment import set_up_logging

    set_up_logging()
    try:
        cfg = load_data_config(args)
        samples = list(itertools.islice(training_samples(cfg), args.num))
    except (ValueError, OSError, RuntimeError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    paths = write_drawings(cfg, samples, args.output)
    print(f"pictures of {', '.join(cfg.DATASETS.TRAIN)}: {len(samples)} in {args.output}, all together in {paths[-1]}")
    return 0
