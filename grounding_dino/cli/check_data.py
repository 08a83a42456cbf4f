"""`tools/check_data.py`: whether data sets can be trained on, and what a configured training will take."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grounding_dino.cli.arguments import count, program
from grounding_dino.cli.data_arguments import add_data_arguments, load_data_config

if TYPE_CHECKING:
    from grounding_dino.data.check import SetReport

    from detectron2.config import CfgNode

Facts = dict[str, Any]
Size = tuple[int, int]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=program("check_data.py"),
        description="Look through the data sets of a training before it starts, those that it is evaluated on among "
        "them, and say how many steps and how much memory it will take. The exit code is 1 where something is lost to "
        "training or evaluation, or stops it.",
    )
    add_data_arguments(parser)
    parser.add_argument("--all", action="store_true", help="decode every picture, not only 200 of a data set")
    parser.add_argument("--num-gpus", type=count, default=1, help="processes that will share a batch (1)")
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument("--measure", action="store_true", help="run a step of full size, instead of scaling small ones")
    memory.add_argument("--no-memory", action="store_true", help="do not build the model")
    parser.add_argument("--output", type=Path, default=Path("output/data_check"), help="folder for drawn samples")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file as well")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `tools/check_data.py`: 0, 1 where there are errors, or a sentence and exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    from grounding_dino.data.check import check_dataset
    from grounding_dino.data.datasets import register_extra_datasets
    from grounding_dino.data.datasets.groups import expand_groups

    try:
        cfg = load_data_config(args)
        register_extra_datasets(cfg.DATASETS.EXTRA)
        if not cfg.DATASETS.TRAIN:
            raise ValueError("there is no data set to check: name one with --dataset, or in DATASETS.TRAIN")
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    reports, samples = [], []
    for name in cfg.DATASETS.TRAIN:
        reports.append(check_dataset(cfg, name, None if args.all else 200))
        samples += draw_samples(cfg, reports[-1], args.output / name)
        print_part(f"data set {name}", reports[-1])
    tests = []
    for name in dict.fromkeys(expand_groups([*cfg.DATASETS.TEST, *cfg.TEST.RETAINED])):
        tests.append(check_test_set(cfg, name, None if args.all else 200))
        print_part(f"test set {name}", tests[-1])
    plan = check_training(cfg, reports, samples, args)
    print_part("training", plan)
    wrong = any(report.findings.has_errors for report in (*reports, *tests, plan))
    if args.json:
        parts = {"data_sets": list(map(_content, reports)), "test_sets": list(map(_content, tests))}
        content = {"ok": not wrong, **parts, "training": _content(plan)}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("errors were found" if wrong else "no errors were found")
    return int(wrong)


def _content(report: SetReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "facts": report.facts,
        "notes": report.notes,
        "numbers": report.numbers,
        "findings": report.findings.as_json(),
    }


def print_part(title: str, report: SetReport) -> None:
    """A table of facts, and the notes and findings below it."""
    from grounding_dino.tables import format_table

    print(format_table((title, ""), [(name, str(value)) for name, value in report.facts.items()], indent=""))
    for line in (*report.notes, *report.findings.all()):
        print(line)
    print(flush=True)


def check_test_set(cfg: CfgNode, name: str, num_pictures: int | None) -> SetReport:
    """What is found in a data set of DATASETS.TEST or TEST.RETAINED, and whether anything scores it."""
    from grounding_dino.data.check import check_dataset
    from grounding_dino.data.findings import ERROR
    from grounding_dino.evaluation.build import kinds_of_run

    report = check_dataset(cfg, name, num_pictures)
    try:
        kinds_of_run(cfg, name)
    except ValueError as error:
        report.findings.note(ERROR, "the data set cannot be evaluated on", str(error))
    return report


def draw_samples(cfg: CfgNode, report: SetReport, folder: Path) -> list[dict[str, Any]]:
    """Five training samples of a data set, drawn into a folder."""
    from grounding_dino.cli.visualize_data import write_drawings
    from grounding_dino.data.check import decoded_samples

    samples = decoded_samples(cfg, report, 5)
    if samples:
        write_drawings(cfg, samples, folder)
        report.facts["samples drawn"] = f"{len(samples)} in {folder}"
    return samples


# ------------------------------------------------------------------------------------------------------ the training


def check_training(
    cfg: CfgNode, reports: Sequence[SetReport], samples: Sequence[dict[str, Any]], args: argparse.Namespace
) -> SetReport:
    """Steps and memory of the configured training, and whether it starts at all."""
    from grounding_dino.data.check import SetReport
    from grounding_dino.data.class_count import with_class_count
    from grounding_dino.data.findings import ERROR

    plan = SetReport("training")
    if any(not report.records for report in reports):
        plan.findings.note(ERROR, "the training cannot start", "a data set cannot be loaded, see above")
        return plan
    try:
        cfg = with_class_count(cfg)
        plan.facts |= steps_of(cfg)
    except (ValueError, OSError) as error:
        plan.findings.note(ERROR, "the training cannot start", str(error))
    if not args.no_memory and samples:
        try:
            add_memory(plan, cfg, reports, samples, args)
        except (ValueError, ImportError) as error:
            plan.findings.note(ERROR, "the model cannot be trained as configured", str(error))
        except RuntimeError as error:  # out of memory comes as one
            plan.findings.note(ERROR, "the step that was to be measured failed", str(error).splitlines()[0])
    return plan


def steps_of(cfg: CfgNode) -> Facts:
    """Pictures, batches and iterations, from the training's own loader.

    Raises:
        ValueError: the training would not start.
    """
    from grounding_dino.data.check import quiet_readers
    from grounding_dino.data.loader import build_train_loader, pictures_an_epoch
    from grounding_dino.engine.epochs import in_iterations

    cfg = cfg.clone()
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0])
    with quiet_readers():
        pictures = pictures_an_epoch(build_train_loader(cfg, seed=max(cfg.SEED, 0)))
    batch, iterations = cfg.SOLVER.IMS_PER_BATCH, in_iterations(cfg, pictures).SOLVER.MAX_ITER
    return {
        "pictures an epoch": pictures,
        "pictures a batch": batch,
        "iterations an epoch": f"{pictures / batch:.1f}",
        "iterations": iterations,
        "epochs": f"{iterations * batch / pictures:.2f}",
    }


def add_memory(
    plan: SetReport,
    cfg: CfgNode,
    reports: Sequence[SetReport],
    samples: Sequence[dict[str, Any]],
    args: argparse.Namespace,
) -> None:
    """The memory of one process, with the largest picture that augmentation makes and the most objects of a picture.

    Raises:
        ValueError: the batch cannot be split as asked for, or the model does not fit its configuration.
    """
    from grounding_dino.data.check import quiet_readers
    from grounding_dino.engine.memory import estimate_memory, format_bytes, largest_picture, measure_memory

    parts = args.num_gpus * cfg.SOLVER.ACCUMULATION_STEPS
    pictures = cfg.SOLVER.IMS_PER_BATCH // parts
    if pictures * parts != cfg.SOLVER.IMS_PER_BATCH:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} cannot be split into {parts} parts "
            f"(--num-gpus {args.num_gpus}, SOLVER.ACCUMULATION_STEPS {cfg.SOLVER.ACCUMULATION_STEPS})"
        )
    size = largest_picture(cfg, [size for report in reports for size in report.sizes])
    sample = max(samples, key=lambda found: len(found["instances"]))
    objects = max(report.most_objects for report in reports)
    with quiet_readers():
        memory = (measure_memory if args.measure else estimate_memory)(cfg, sample, size, pictures, objects)
    for name in ("weights", "gradients", "optimizer", "average", "activations", "total"):
        plan.facts[f"memory, {name}"] = format_bytes(getattr(memory, name))
    if memory.peak is not None:
        plan.facts["memory, peak"] = format_bytes(memory.peak)
    plan.numbers = {**dataclasses.asdict(memory), "total": memory.total}
    plan.notes += [
        f"The memory is that of one process, a pass of {pictures} pictures of {size[1]} x {size[0]} with {objects} "
        f"objects each, on {cfg.MODEL.DEVICE}: {memory.how}.",
        "Workspaces of kernels, what the allocator keeps in reserve, and on a GPU CUDA itself come on top.",
    ]
