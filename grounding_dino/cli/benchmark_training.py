"""`tools/benchmark.py --train`: what options of training cost, side by side on one batch of real pictures."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from grounding_dino.cli.benchmark_inference import Plan
from grounding_dino.cli.benchmark_workers import TUNED_ALLOCATOR, Worker, WorkerError, run_in_turn
from grounding_dino.cli.data_arguments import load_data_config

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

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


def build_step(cfg: CfgNode, batch: list[dict[str, Any]]) -> tuple[Step, nn.Module]:
    """A function that makes one optimizer step on `batch` as `cfg` says, and its model, of random weights."""
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

    return step, model


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
    steps = [build_step(changed(cfg, options), batch)[0] for options in sides.values()]
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


def measure_against(config: str, opts: Sequence[Any], plan: Plan) -> dict[str, Any]:
    """Steps of our training beside those of `transformers`, a process each, in turn; ready for JSON.

    Ours with the denoising queries that it is configured with, which `transformers` has not, and without them.

    Raises:
        ValueError: `transformers` cannot train this model, or nobody can.
    """
    record: dict[str, Any] = {"config": config, "size": list(plan.size), "batch": plan.batch, "device": plan.device}
    record |= {"categories": plan.categories, "rows": []}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        settings = {"config": config, "opts": list(opts), "folder": folder, "size": plan.size}
        try:
            with Worker("preparation", {**settings, "categories": plan.categories}) as worker:
                facts = worker.call("prepare")
        except WorkerError as error:
            raise ValueError(f"{config} is not measured: {error}") from error
        if facts["obstacle"]:
            raise ValueError(f"{config} cannot be trained by transformers: {facts['obstacle']}")
        if facts["prompts"] > 1:
            raise ValueError(
                f"--categories {plan.categories} take {facts['prompts']} prompts, and training takes one; name fewer"
            )
        for dtype in plan.dtypes:  # one after another: every side holds weights, gradients and averages
            record["rows"] += _rows_against(folder, dtype, plan)
    return record


def _rows_against(folder: str, dtype: str, plan: Plan) -> list[dict[str, Any]]:
    settings = {"folder": folder, "size": plan.size, "batch": plan.batch, "dtype": dtype}
    settings |= {"categories": plan.categories, "device": plan.device}
    sides: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
        "ours, with denoising": ("train ours", {"denoising": True}, {}),
        "ours, without denoising": ("train ours", {"denoising": False}, {}),
    }
    if "transformers" in plan.sides:
        sides["transformers"] = ("train transformers", {}, {})
    if "tuned" in plan.sides:
        sides["transformers, allocator tuned"] = ("train transformers", {}, TUNED_ALLOCATOR)
    workers: dict[str, Worker] = {}
    failed: list[dict[str, Any]] = []
    rows = []
    with contextlib.ExitStack() as stack:
        for name, (role, options, environment) in sides.items():
            try:
                workers[name] = stack.enter_context(Worker(role, {**settings, **options}, environment))
            except WorkerError as error:
                failed.append({"side": name, "dtype": dtype, "error": str(error)})
        found = run_in_turn(workers, plan.repeats)
        reference = found.get("transformers", {}).get("seconds")
        for name, result in found.items():
            row = {"side": name, "dtype": dtype, **result}
            if "seconds" in result:
                row |= workers[name].call("facts")
                if reference:
                    row["faster"] = reference["median"] / result["seconds"]["median"]
            rows.append(row)
    return rows + failed
