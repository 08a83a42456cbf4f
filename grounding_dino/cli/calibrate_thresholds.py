"""`tools/calibrate_thresholds.py`: thresholds for each category, from labelled pictures."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grounding_dino.cli.arguments import INTERRUPTED, count, count_or_none, program, share

if TYPE_CHECKING:
    from grounding_dino.evaluation.calibration import Calibration, JudgedCategory, Measures
    from grounding_dino.evaluation.labelled_pictures import Found
    from grounding_dino.predictor import GroundingPredictor
    from grounding_dino.thresholds import CategoryThresholds

    from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

MOST_PANELS = 12  # of the reliability plot

EPILOG = """\
examples:
  %(prog)s --config-file output/cells/config.yaml --weights output/cells/model_final.pth \\
      --dataset cells=train.json:images --evaluate val=val.json:images --output thresholds.json
  %(prog)s --dataset cells=train.json:images --precision 0.9
A category's threshold is the one with the best F1 (or, with --precision, the lowest with that share of right
detections). Few objects make a chance of it: scores are smoothed, and --pool-weight objects of all categories together
are added to each one's own. The threshold of all together is that of unknown names. Detections are the predictor's: one
name a query.
The file is read by --thresholds of the demo and of other commands, and by CategoryThresholds.load in Python.
The exit code is 0 if all went well, 1 if some pictures could not be read, 2 on wrong usage, 130 after Ctrl-C."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=program("calibrate_thresholds.py"),
        description="Find the least score that detections of each category need, from pictures that are labelled with "
        "all of the categories.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--config-file",
        default="shapes_tiny",
        metavar="FILE",
        help="a .yaml file or a short name (default: shapes_tiny)",
    )
    model.add_argument("--weights", metavar="FILE", help="a checkpoint of any origin: file, folder or URL")
    model.add_argument("--device", help="cuda, cpu, ... (default: a GPU where there is one)")
    model.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="override the configuration; comes last",
    )
    form = "NAME[=annotations:image_folder]"
    parser.add_argument(
        "--dataset", required=True, metavar=form, help="labelled pictures; registered before if paths are given"
    )
    parser.add_argument("--evaluate", metavar=form, help="report on these pictures too, which thresholds do not see")
    parser.add_argument(
        "--iou", type=share, default=0.5, metavar="X", help="overlap that makes a detection right (default: 0.5)"
    )
    parser.add_argument(
        "--precision", type=share, metavar="X", help="the share of detections that are to be right, instead of best F1"
    )
    parser.add_argument(
        "--pool-weight",
        type=count_or_none,
        default=3,
        metavar="N",
        help="objects of all categories together that are added to those of each; more where categories are alike "
        "(default: 3)",
    )
    parser.add_argument(
        "--output", default="thresholds.json", metavar="FILE", help="file to write (default: thresholds.json)"
    )
    parser.add_argument("--plot", metavar="FILE", help="reliability plot (default: beside --output, .png)")
    parser.add_argument("--batch-size", type=count, default=1, metavar="N", help="pictures run at once (default: 1)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not args.iou or args.precision == 0:
        parser.error(f"{'--iou' if not args.iou else '--precision'} has to be more than 0")
    try:
        return calibrate(args)
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError, KeyError) as error:
        logger.debug("the calibration stopped", exc_info=True)
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"{parser.prog}: error: {reason}", file=sys.stderr)
        return 2


def calibrate(args: argparse.Namespace) -> int:
    """Detect, choose thresholds, and write and print them; returns the exit code.

    Raises:
        FileNotFoundError, TypeError, ValueError: a model, data set or file that cannot be used, in a sentence.
    """
    from grounding_dino.data.datasets import register_extra_datasets
    from grounding_dino.evaluation.calibration import Calibrator, judge
    from grounding_dino.evaluation.labelled_pictures import LabelledPictures
    from grounding_dino.model_zoo import load_cfg
    from grounding_dino.predictor import load_predictor
    from grounding_dino.thresholds import CategoryThresholds

    output, plot = planned_files(args.output, args.plot)
    cfg: CfgNode = load_cfg(args.config_file, args.opts)
    sets = [text for text in (args.dataset, args.evaluate) if text]
    register_extra_datasets([*cfg.DATASETS.EXTRA, *(text for text in sets if "=" in text)])
    pictures = [LabelledPictures(cfg, text.partition("=")[0].strip()) for text in sets]
    predictor = load_predictor(args.config_file, args.weights, args.device, args.opts)
    found = [each.detect(predictor, args.batch_size) for each in pictures]
    if found[0].failures and not found[0].truth.dataset["images"]:
        count, (path, reason) = len(found[0].failures), found[0].failures[0]
        raise ValueError(f"none of the {count} pictures of {pictures[0].name!r} can be read; {path}: {reason}")
    judged = [judge(each.truth, each.results, args.iou) for each in found]
    calibration = Calibrator(args.precision, args.pool_weight)(judged[0])
    facts = facts_of(args, predictor, pictures[0].name, found[0], judged[0], calibration)
    if args.evaluate:
        facts["evaluation"] = {"data_set": pictures[1].name, **measured(judged[1], calibration.thresholds)}
    thresholds = CategoryThresholds(calibration.thresholds.default, calibration.thresholds.categories, facts)
    thresholds.save(output)
    for each, categories in zip(pictures, judged):
        print_table(each.name, categories, thresholds)
    print_notes(calibration, args)
    print(f"thresholds: {output}\nreliability: {draw(plot, judged[0], thresholds)}")
    failures = [failure for each in found for failure in each.failures]
    if failures:
        print(f"{len(failures)} pictures could not be read, and are left out:", file=sys.stderr)
    for path, reason in failures:
        print(f"  {path}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def planned_files(output: str, plot: str | None) -> tuple[Path, Path]:
    """The files to write, whose folders are made before the work begins.

    Raises:
        ValueError: one is a folder, both are one, or a folder cannot be made.
    """
    named = {"--output": output, "--plot": plot}
    for option, text in named.items():
        if text is not None and Path(text).is_dir():
            raise ValueError(f"{option} {text!r} is a folder; name a file in it")
    files = Path(output), Path(plot) if plot else Path(output).with_suffix(".png")
    for option, file in zip(named, files):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{option} {str(file)!r}: its folder cannot be made ({error}); name another") from error
    if files[0] == files[1]:
        raise ValueError(f"--output and --plot are one file, {str(files[0])!r}; name two")
    return files


def facts_of(
    args: argparse.Namespace,
    predictor: GroundingPredictor,
    data_set: str,
    found: Found,
    judged: Sequence[JudgedCategory],
    calibration: Calibration,
) -> dict[str, Any]:
    """How the thresholds came about, for the file."""
    return {
        "goal": "best F1" if args.precision is None else f"precision {args.precision:g}",
        "iou": args.iou,
        "pool_weight": args.pool_weight,
        "config": Path(args.config_file).name,
        "weights": Path(predictor.weights).name,
        "without_objects": list(calibration.without_objects),
        "unreachable": list(calibration.unreachable),
        "calibration": {
            "data_set": data_set,
            "pictures": len(found.truth.dataset["images"]),
            **measured(judged, calibration.thresholds),
        },
    }


def measured(judged: Sequence[JudgedCategory], thresholds: CategoryThresholds) -> dict[str, Any]:
    """Measures of each category and of all, with the thresholds and with the default, as json holds them."""
    from grounding_dino.evaluation.calibration import compared, gain_over_default, mean_f1, total

    gain, error = gain_over_default(judged, thresholds)
    rows = compared(judged, thresholds)
    ours, default = [row[1] for row in rows], [row[2] for row in rows]
    return {
        "mean_f1": _number(mean_f1(ours)),
        "mean_f1_at_default": _number(mean_f1(default)),
        "mean_f1_gain": _number(gain),
        "mean_f1_gain_standard_error": _number(error),
        "f1_of_all": _number(total(ours).f1),
        "f1_of_all_at_default": _number(total(default).f1),
        "categories": {
            category.name: {
                "objects": category.num_objects,
                "precision": _number(mine.precision),
                "recall": _number(mine.recall),
                "f1": _number(mine.f1),
                "f1_at_default": _number(other.f1),
            }
            for category, mine, other in rows
        },
    }


def _number(value: float) -> float | None:
    """As json holds it, which knows no NaN."""
    return None if value != value else round(value, 4)


def print_table(name: str, judged: Sequence[JudgedCategory], thresholds: CategoryThresholds) -> None:
    """What the thresholds give in a data set, beside the default."""
    from grounding_dino.evaluation.calibration import compared, gain_over_default, mean_f1, total
    from grounding_dino.tables import format_table
    from grounding_dino.thresholds import BOX_THRESHOLD

    header = (name, "objects", "threshold", "precision", "recall", "F1", f"F1 at {BOX_THRESHOLD}")
    compared_rows = compared(judged, thresholds)
    rows = [
        (category.name, str(mine.num_objects), f"{thresholds.of(category.name):.4f}", *_shown(mine, default))
        for category, mine, default in compared_rows
    ]
    ours, default = [row[1] for row in compared_rows], [row[2] for row in compared_rows]
    rows.append(("all objects", str(total(ours).num_objects), "", *_shown(total(ours), total(default))))
    rows.append(("mean of categories", "", "", "", "", _decimal(mean_f1(ours)), _decimal(mean_f1(default))))
    print(format_table(header, rows, indent=""))
    gain, error = gain_over_default(judged, thresholds)
    if gain == gain:
        print(f"gain over the default: {gain:+.3f} in the mean of categories, standard error {error:.3f}")
    print()


def _shown(mine: Measures, default: Measures) -> tuple[str, ...]:
    return tuple(map(_decimal, (mine.precision, mine.recall, mine.f1, default.f1)))


def _decimal(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"


def print_notes(calibration: Calibration, args: argparse.Namespace) -> None:
    """Which categories have another threshold than their own detections ask for, and why."""
    default = calibration.thresholds.default
    for names, note in (
        (calibration.without_objects, f"no object: the default for unknown names, {default:.4f}"),
        (
            calibration.unreachable,
            f"no threshold gives a precision of {args.precision}: 1, so that nothing is found",
        ),
    ):
        if names:
            print(f"{note}: {', '.join(names)}")


def draw(path: Path, judged: Sequence[JudgedCategory], thresholds: CategoryThresholds) -> Path:
    """The reliability of all detections, and of the categories with most objects."""
    from grounding_dino.evaluation.calibration import reliability_of
    from grounding_dino.evaluation.plots import save_reliability_plot

    shown = sorted((each for each in judged if each.num_objects), key=lambda each: -each.num_objects)[: MOST_PANELS - 1]
    parts = [reliability_of(judged, "all categories"), *(reliability_of([each], each.name) for each in shown)]
    save_reliability_plot(str(path), parts, [thresholds.default, *(thresholds.of(each.name) for each in shown)])
    return path
