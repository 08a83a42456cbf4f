"""`tools/benchmark.py --train`: what options of training cost, side by side on one batch of real pictures."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from grounding_dino.cli.data_arguments import load_data_config

if TYPE_CHECKING:
    from detectron2.config import CfgNode

Step = Callable[[], object]

PLAIN = "as configured"
OPTIONS: dict[str, tuple[Any, ...]] = {
    "bf16 autocast": ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16"),
    "fp16 autocast": ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16"),
    "two passes a step": ("SOLVER.ACCUMULATION_STEPS", 2),
    "averaged weights": ("SOLVER.EMA.ENABLED_ON", True),
    "no clipping": ("SOLVER.CLIP_GRADIENTS.ENABLED", False),
    "no denoising": ("MODEL.DENOISING.ENABLED_ON", False),
    "encoder checkpointed": ("MODEL.PIXEL_DECODER.ACTIVATION_CHECKPOINTING_ON", True),
    "decoder checkpointed": ("MODEL.TRANSFORMER_DECODER.ACTIVATION_CHECKPOINTING_ON", True),
    "tower checkpointed": ("MODEL.DENSE_HEAD.ACTIVATION_CHECKPOINTING_ON", True),
    "text encoder checkpointed": ("MODEL.TEXT_ENCODER.ACTIVATION_CHECKPOINTING_ON", True),
    "text encoder frozen": ("SOLVER.FREEZE", [r"^text_encoder\."]),
    "adapters": ("MODEL.LORA.ENABLED_ON", True),
    "deterministic": ("SOLVER.DETERMINISTIC_ON", True),
}


def load_training_config(args: argparse.Namespace) -> CfgNode:
    """The configuration that the options are tried on.

    Raises:
        ValueError: there is nothing to train on, or a configuration that is not written as it has to be.
        FileNotFoundError: no such configuration.
    """
    from grounding_dino.data.class_count import with_class_count

    cfg = load_data_config(args)
    if not cfg.DATASETS.TRAIN:
        raise ValueError("there are no pictures to train on: name a data set with --dataset, or in DATASETS.TRAIN")
    cfg.SOLVER.AMP.ENABLED = False
    return with_class_count(cfg)


# Keys of parts that GLIP has not, and of those that it alone has.
_NOT_OF_GLIP = ("MODEL.DENOISING.", "MODEL.PIXEL_DECODER.", "MODEL.TRANSFORMER_DECODER.")
_OF_GLIP = ("MODEL.DENSE_HEAD.",)


def default_options(cfg: CfgNode) -> list[str]:
    """All options that change something in the model and that this device trains with: fp16 needs a GPU."""
    absent = _NOT_OF_GLIP if cfg.MODEL.META_ARCHITECTURE == "GLIP" else _OF_GLIP
    return [
        name
        for name, (key, *_) in OPTIONS.items()
        if not key.startswith(absent) and not (name == "fp16 autocast" and cfg.MODEL.DEVICE == "cpu")
    ]


def first_batch(cfg: CfgNode) -> tuple[list[dict[str, Any]], float]:
    """A training batch, and the seconds that a batch takes to load in the process itself (mean of five)."""
    from grounding_dino.data.datasets import register_extra_datasets
    from grounding_dino.data.loader import build_train_loader

    cfg = changed(cfg, ("DATALOADER.NUM_WORKERS", 0))
    register_extra_datasets(cfg.DATASETS.EXTRA)
    batches = iter(build_train_loader(cfg, max(0, cfg.SEED)))
    batch = next(batches)  # what is done once is done now
    start = time.perf_counter()
    for _ in range(5):
        next(batches)
    return batch, (time.perf_counter() - start) / 5


def build_step(cfg: CfgNode, batch: list[dict[str, Any]]) -> Step:
    """A function that makes one optimizer step on `batch` as `cfg` says, of a model with random weights."""
    import grounding_dino.modeling  # noqa: F401  (registers the models)
    from grounding_dino.engine.ema import build_average
    from grounding_dino.engine.lora import build_adapters
    from grounding_dino.engine.optimizer import build_optimizer
    from grounding_dino.engine.train_step import TrainStep

    import torch
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    torch.manual_seed(max(0, cfg.SEED))
    model = build_model(cfg).train()
    build_adapters(cfg, model)
    optimizer = build_optimizer(cfg, model)
    average = build_average(cfg, model)
    trainer = TrainStep(model, itertools.repeat(batch), optimizer, cfg)
    trainer.iter = 0

    def step() -> None:
        torch.use_deterministic_algorithms(cfg.SOLVER.DETERMINISTIC_ON)
        with EventStorage():
            trainer.run_step()
        if average is not None:
            average.update()

    return step


def changed(cfg: CfgNode, options: Sequence[Any]) -> CfgNode:
    """`cfg` with other values of some keys."""
    other = cfg.clone()
    other.defrost()
    other.merge_from_list(list(options))
    other.freeze()
    return other


def measure_training(
    cfg: CfgNode, names: Sequence[str], measure: Callable[[Sequence[Step], int], list[Any]], repeats: int
) -> list[dict[str, Any]]:
    """Times of training steps, one record for the plain one and each option of `names`; times in seconds.

    All models are in memory together, and take steps in turn.
    """
    batch, loading = first_batch(cfg)
    sides: dict[str, tuple[Any, ...]] = {PLAIN: (), **{name: OPTIONS[name] for name in names}}
    steps = [build_step(changed(cfg, options), batch) for options in sides.values()]
    timings = measure(steps, repeats)
    return [
        {"option": name, "pictures": len(batch), "step": timing._asdict(), "loading": loading}
        for name, timing in zip(sides, timings, strict=True)
    ]


def training_rows(records: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line of the table for each record: pictures a second, and the time of a step beside that of the plain one."""
    plain = records[0]["step"]["median"]
    rows: list[tuple[str, ...]] = []
    for record in records:
        pictures, step = record["pictures"], record["step"]
        slowest, fastest = pictures / step["highest"], pictures / step["lowest"]
        speed = f"{pictures / step['median']:.2f} ({slowest:.2f} to {fastest:.2f})"
        share = record["loading"] / (record["loading"] + step["median"])
        rows.append((record["option"], speed, f"{step['median'] / plain:.2f}x", f"{share:.1%}"))
    return rows
