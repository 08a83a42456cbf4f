"""`tools/label_images.py`: pictures of any number in, COCO, YOLO, Pascal VOC and ODVG out."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grounding_dino.cli.arguments import INTERRUPTED, count, count_or_none, program, share
from grounding_dino.cli.choice_arguments import add_choice_options
from grounding_dino.cli.model_arguments import add_model_options

if TYPE_CHECKING:
    from grounding_dino.labelling.output_folder import OutputFolder
    from grounding_dino.labelling.run import Crew
    from grounding_dino.labelling.settings import LabelSettings

logger = logging.getLogger(__name__)

FORMATS = ("coco", "yolo", "voc", "odvg")
MASKS = ("rle", "polygon", "none")

EPILOG = """\
examples:
  %(prog)s --input photos --output labels --categories dog cat --format coco yolo
  %(prog)s --input "shards/{0000..0127}.tar" --output labels --per-picture caption --format odvg
  %(prog)s --input list.jsonl --output labels --per-picture categories --workers 4
  %(prog)s --input aerial --output labels --text "car . truck ." --tile-size 640 --nms 0.6
  %(prog)s --input photos --output labels --categories cup --engine ray --ray-address auto --workers 16
Inputs are folders (with all below), pictures, lists (.txt: a path a line; .jsonl: a file_name a row), webdataset's tar
files and parquet files. Killed or interrupted, the same command goes on where it was. Pictures that cannot be labelled
are listed in OUTPUT/failed.jsonl. Label files are written when all pictures are done; another --format later takes
them from what is there.
The exit code is 0 if all went well, 1 if some pictures failed, 2 on wrong usage or where the run cannot go on, 130
after Ctrl-C."""


def build_parser() -> argparse.ArgumentParser:
    """The options; those of the model and the prompt are the demo's."""
    parser = argparse.ArgumentParser(
        prog=program("label_images.py"),
        description="Label pictures with what a text names, or the classes that a model knows.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="what to label; see below")
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="a folder for the labels and for what is done"
    )
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["coco"], help="label files (default: coco)")
    add_model_options(parser)
    _add_words(parser)
    add_choice_options(parser)
    _add_refinements(parser)
    _add_run_options(parser)
    return parser


def _add_words(parser: argparse.ArgumentParser) -> None:
    texts = parser.add_argument_group("what to look for; none for a model of fixed classes")
    text = texts.add_mutually_exclusive_group()
    text.add_argument("--categories", nargs="+", metavar="NAME", help='names: --categories cat "traffic light"')
    text.add_argument("--text", help='names in one string: --text "cat . traffic light ."')
    text.add_argument("--categories-file", metavar="FILE", help="names, one a line or a json list")
    text.add_argument("--caption", help="free text; detections are named by its words")
    texts.add_argument(
        "--per-picture",
        choices=("categories", "caption"),
        help="pictures have their own: in the column or key of that name, or in a .txt (in tar files also .json) "
        "beside the picture; the options above are for pictures without",
    )


def _add_refinements(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nms", type=share, metavar="IOU", help="drop the worse of two boxes of a class that overlap more, such as 0.7"
    )
    parser.add_argument(
        "--tile-size",
        type=count,
        default=0,
        metavar="PIXELS",
        help="for small objects: look at squares of this side, too, and join what they show (--nms 0.5 by default)",
    )
    parser.add_argument(
        "--tile-overlap",
        type=share,
        default=0.2,
        metavar="SHARE",
        help="of a tile that its neighbour sees, too: wide enough for the small objects (default: 0.2)",
    )
    parser.add_argument(
        "--masks",
        choices=MASKS,
        default="rle",
        help="of models that give them: run lengths or polygons in COCO and ODVG; with polygon, YOLO's lines are "
        "polygons, too (default: rle)",
    )
    parser.add_argument(
        "--yolo-pictures",
        choices=("link", "copy", "none"),
        default="link",
        help="what stands in yolo/images, by which trainings find labels (default: symbolic links)",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=count, default=1, metavar="N", help="pictures run at once (default: 1)")
    parser.add_argument(
        "--workers",
        type=count_or_none,
        metavar="N",
        help="processes with a model each (default: one a GPU; one on the CPU); 0: all in this one",
    )
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster (default: local)"
    )
    parser.add_argument(
        "--ray-address", metavar="ADDRESS", help="of the cluster (default: RAY_ADDRESS, else a Ray on this machine)"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--restart", action="store_true", help="forget what was done in OUTPUT")
    again.add_argument("--retry-failed", action="store_true", help="try pictures that failed again")


def main(argv: Sequence[str] | None = None) -> int:
    """Label; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return _label(parser, args)
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError, KeyError, ImportError) as error:
        logger.debug("labelling stopped", exc_info=True)
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"{parser.prog}: error: {reason}", file=sys.stderr)
        return 2


def _label(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from grounding_dino.labelling.inputs import PictureInputs

    inputs = PictureInputs(args.input, args.per_picture, leave_out=args.output)
    settings = _settings(parser, args)
    folder = _open(args, settings)
    try:
        folder.begin(inputs, args.retry_failed)
        _report_begin(folder)
        if not folder.journal.is_complete:
            _run(folder, settings, _crew(args, settings))
        _write(folder, settings, args)
        return _report_end(folder)
    finally:
        folder.close()


def _settings(parser: argparse.ArgumentParser, args: argparse.Namespace) -> LabelSettings:
    """What workers have to know; usage errors end the command here."""
    from grounding_dino.cli.demo import prompt_of, text_problem
    from grounding_dino.labelling.settings import LabelSettings
    from grounding_dino.labelling.words import read_names

    if args.categories_file is not None:
        args.categories = read_names(args.categories_file)
    words = prompt_of(args)
    asked = words if words.keys() - {"not_wanted"} or not args.per_picture else {**words, args.per_picture: "its own"}
    problem = text_problem(args, asked)
    if not problem and args.per_picture == "caption" and not isinstance(args.confidence_threshold, float):
        problem = "--thresholds goes with categories: the detections of a caption have no category"
    if not problem and args.per_picture == "caption" and args.not_wanted is not None:
        problem = "--not-wanted goes with categories: no name competes with the words of a caption"
    if not problem and args.tile_overlap >= 1:
        problem = "--tile-overlap 1 leaves no step between tiles; take less, such as 0.2"
    if problem:
        parser.error(problem)
    return LabelSettings(
        config=args.config_file,
        weights=args.weights,
        device=args.device,
        opts=tuple(args.opts),
        words={kind: value for kind, value in words.items() if kind != "not_wanted"},
        box_threshold=args.confidence_threshold,
        text_threshold=args.text_threshold,
        not_wanted=tuple(args.not_wanted or ()),
        nms=args.nms,
        tile_size=args.tile_size,
        tile_overlap=args.tile_overlap,
        masks=args.masks != "none",
        batch_size=args.batch_size,
    )


def _open(args: argparse.Namespace, settings: LabelSettings) -> OutputFolder:
    from grounding_dino.labelling.output_folder import OutputFolder
    from grounding_dino.labelling.settings import described_settings
    from grounding_dino.model_zoo import load_cfg

    cfg = load_cfg(args.config_file, args.opts)
    cfg.MODEL.DEVICE = ""
    described = described_settings(settings, cfg.dump(), args.input, args.per_picture)
    return OutputFolder(Path(args.output), described, args.restart)


def _crew(args: argparse.Namespace, settings: LabelSettings) -> Crew:
    """Workers as --engine, --workers and --device say."""
    import dataclasses

    from grounding_dino.model_zoo import resolve_device

    import torch

    named = dict(zip(args.opts[::2], args.opts[1::2])).get("MODEL.DEVICE")
    device = resolve_device(args.device or named)
    devices = [device]
    if device == "cuda" and args.engine == "local":
        devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    workers = len(devices) if args.workers is None else args.workers
    threads = max(1, torch.get_num_threads() // max(workers, 1))  # those of all together are what one would take
    settings = dataclasses.replace(settings, device=device, threads=threads)
    if args.engine == "ray":
        from grounding_dino.labelling.ray_workers import RayCrew

        if not workers:
            raise ValueError("--engine ray works in processes of its own: --workers 0 goes with --engine local alone")
        return RayCrew(settings, workers, args.ray_address, gpu=device.startswith("cuda"))
    from grounding_dino.labelling.local_workers import LocalCrew, ThisProcess

    return ThisProcess(settings) if not workers else LocalCrew(settings, workers, devices)


def _run(folder: OutputFolder, settings: LabelSettings, crew: Crew) -> None:
    """Label what is pending, with a bar that says how long it will take."""
    from grounding_dino.labelling.run import LabellingRun, tasks_of

    from tqdm import tqdm

    journal, plan = folder.journal, folder.plan
    every = 0.5 if sys.stderr.isatty() else 30.0  # a log is no terminal
    done = journal.labelled + journal.failed
    with tqdm(total=plan.total, initial=done, unit="picture", mininterval=every, smoothing=0) as bar:

        def add(records: Sequence[dict[str, Any]]) -> None:
            bar.update(journal.add(records))
            bar.set_postfix(failed=journal.failed, refresh=False)

        def started(classes: Sequence[str] | None) -> None:
            bar.unpause()  # loading the model is no part of the pictures' time
            folder.set_classes(classes)

        tasks = tasks_of(plan, journal, settings.batch_size, bool(settings.tile_size))
        LabellingRun(crew, tasks, add, started)()


def _write(folder: OutputFolder, settings: LabelSettings, args: argparse.Namespace) -> None:
    """Write the label files that are not written yet."""
    from grounding_dino.labelling.outputs import LabelFiles

    how = {name: args.masks + (f", pictures {args.yolo_pictures}" if name == "yolo" else "") for name in args.format}
    missing = folder.missing({**how, "failures": ""})
    if not missing:
        return
    names = folder.classes if folder.classes is not None else settings.words.get("categories")
    if args.per_picture:
        names = None
    folder.begin_writing(missing)
    files = LabelFiles(folder.folder, folder.root, folder.plan, folder.journal, names, args.masks, args.yolo_pictures)
    files.write([name for name in FORMATS if name in missing], progress=sys.stderr.isatty())
    folder.set_written({name: {**how, "failures": ""}[name] for name in missing})


def _report_begin(folder: OutputFolder) -> None:
    """Say what there is to do."""
    journal, plan = folder.journal, folder.plan
    done = journal.labelled + journal.failed
    if plan.repeated:
        print(f"{plan.repeated} pictures are listed more than once; each is labelled once, with its first words")
    if folder.has_changed:
        print(
            "the pictures at --input have changed since the run began: it goes on with those of then; for others name "
            "another --output, or begin anew with --restart"
        )
    if not folder.is_new:
        retried = f", {journal.retried} that failed are tried again" if journal.retried else ""
        print(f"{done} of {plan.total} pictures are done{retried}")


def _report_end(folder: OutputFolder) -> int:
    """Say what was done; the exit code."""
    journal = folder.journal
    print(f"{journal.labelled} of {folder.plan.total} pictures are labelled in {folder.folder}")
    if journal.failed:
        print(f"{journal.failed} pictures failed: {folder.folder / 'failed.jsonl'} says why", file=sys.stderr)
    return 1 if journal.failed else 0
