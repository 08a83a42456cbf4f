"""Command line: pictures, video or webcam and, for models with text, a text in; drawings, tables and JSON out."""

from __future__ import annotations

import argparse
import glob
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grounding_dino.cli.arguments import INTERRUPTED, count, count_or_none, program
from grounding_dino.cli.choice_arguments import add_choice_options
from grounding_dino.cli.model_arguments import add_model_options
from grounding_dino.cli.video_arguments import add_video_options, video_problem
from grounding_dino.picture_files import PICTURE_SUFFIXES
from grounding_dino.text.names import names_in

if TYPE_CHECKING:
    from grounding_dino.predictor import GroundingPredictor

logger = logging.getLogger(__name__)

EPILOG = """\
examples:
  %(prog)s --example --output out
  %(prog)s --input demo/pictures --output out --categories "red circle" "blue star"
  %(prog)s --input "photos/*.jpg" --output out --text "cat . dog ." --json out.json
  %(prog)s --config-file swin_t_ogc --weights groundingdino_swint_ogc.pth --input a.jpg --output b.jpg \\
      --caption "two dogs left of the man"
  %(prog)s --config-file mask_dino/coco/r50_panoptic --weights maskdino_r50_panoptic.pth --input a.jpg --output out
  %(prog)s --input photos --output out --categories cup --not-wanted bowl vase --thresholds thresholds.json
  %(prog)s --video-input in.mp4 --output out.mp4 --categories person --track --json tracks.json
DINO and Mask DINO find a fixed list of classes and take no text. Where a model gives several kinds of results, panoptic
segments are drawn, else semantic classes with the instances on them; --opts TEST.PANOPTIC_ON False leaves one out.
Without --config-file and --weights the small model that comes with the package is used.
The exit code is 0 if all went well, 1 if some pictures failed or a video is cut off, 2 on wrong usage, 130 after
Ctrl-C."""


def build_parser() -> argparse.ArgumentParser:
    """The options, named as in the demos of Detectron2 and Mask DINO."""
    parser = argparse.ArgumentParser(
        prog=program("demo.py"),
        description="Detect and segment what a text names, or the classes that a model knows, in pictures, a video "
        "or a webcam.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    source = parser.add_argument_group("input, one of").add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="pictures, folders of them, or quoted glob patterns")
    source.add_argument("--video-input", metavar="FILE", help="a video file")
    source.add_argument("--webcam", action="store_true", help="the first camera; ends with q, Esc or Ctrl-C")
    source.add_argument("--example", action="store_true", help="pictures in the package, and what is in them")
    texts = parser.add_argument_group("what to look for, one of; none for a model of fixed classes")
    text = texts.add_mutually_exclusive_group()
    text.add_argument("--categories", nargs="+", metavar="NAME", help='names: --categories cat "traffic light"')
    text.add_argument("--text", help='names in one string: --text "cat . traffic light ."')
    text.add_argument("--caption", help="free text; detections are named by its words")
    add_choice_options(parser)
    add_video_options(parser)
    _add_run_options(parser)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """Where results go, and how the run is spread over batches and processes."""
    parser.add_argument(
        "--output", metavar="PATH", help="a folder for the drawn pictures, or a file for one; without it none are drawn"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write detections, segments and semantic classes, with masks, to this file"
    )
    parser.add_argument(
        "--batch-size", type=count, default=1, metavar="N", help="pictures or frames run at once (default: 1)"
    )
    parser.add_argument(
        "--workers",
        type=count_or_none,
        metavar="N",
        help="processes that read and draw pictures while the model runs; 0: none (default: by the device)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        take_example(args)
        prompt = prompt_of(args)
        jobs = plan_outputs(expand_inputs(args.input), args.output) if args.input else []
        prepare_json(args.json)
        problem = text_problem(args, prompt) or video_problem(args)  # before weights are fetched
        if problem:
            parser.error(problem)
        from grounding_dino.predictor import load_predictor

        predictor = load_predictor(args.config_file, args.weights, args.device, args.opts)
        predictor.check_prompt(**prompt)
        if args.input:
            return run_pictures(predictor, jobs, prompt, args)
        from grounding_dino.cli.video import run_video

        return run_video(predictor, args.video_input, prompt, args)
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted; what was finished is kept", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError, KeyError) as error:
        logger.debug("the demo stopped", exc_info=True)
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"{parser.prog}: error: {reason}", file=sys.stderr)
        return 2


def take_example(args: argparse.Namespace) -> None:
    """The pictures of `--example` as `--input`, and their categories where the model reads a text and none is given."""
    if not args.example:
        return
    from grounding_dino.model_zoo import EXAMPLE_CATEGORIES, example_pictures, load_cfg

    args.input = [str(example_pictures())]
    given = (args.categories, args.text, args.caption)
    if all(text is None for text in given) and load_cfg(args.config_file, args.opts).MODEL.TEXT_ENCODER.NAME:
        args.categories = list(EXAMPLE_CATEGORIES)


def prompt_of(args: argparse.Namespace) -> dict[str, Any]:
    """The predictor's text arguments; nothing where none is given.

    Raises:
        ValueError: a --text that names nothing.
    """
    prompt: dict[str, Any] = {}
    if args.caption is not None:
        prompt["caption"] = args.caption
    elif args.categories is not None:
        prompt["categories"] = args.categories
    elif args.text is not None:
        names = names_in(args.text)
        if not names:
            raise ValueError(f'--text {args.text!r} names nothing to look for; write for example --text "cat . dog ."')
        prompt["categories"] = names
    return prompt if args.not_wanted is None else {**prompt, "not_wanted": args.not_wanted}


def text_problem(args: argparse.Namespace, prompt: dict[str, Any]) -> str:
    """Why a text, or none, does not go with the model; "" if it does."""
    from grounding_dino.model_zoo import load_cfg

    reads_text = bool(load_cfg(args.config_file, args.opts).MODEL.TEXT_ENCODER.NAME)
    has_text = not prompt.keys() <= {"not_wanted"}
    if reads_text and not has_text:
        return "say what to look for, with --categories, --text or --caption"
    if has_text and not reads_text:
        return (
            f"{args.config_file} is a model of fixed classes, which reads no text: leave out --categories, --text and "
            "--caption"
        )
    if args.caption is not None and args.not_wanted is not None:
        return "--not-wanted goes with --categories or --text: no name competes with the words of a --caption"
    if args.caption is not None and not isinstance(args.confidence_threshold, float):
        return "--thresholds goes with --categories or --text: the detections of a --caption have no category"
    return ""


def prepare_json(path: str | None) -> None:
    """Make the folder of the file that --json names, so that a long run does not end without its results.

    Raises:
        ValueError: it is a folder itself, or its folder cannot be made.
    """
    if path is None:
        return
    if Path(path).is_dir():
        raise ValueError(f"--json {path!r} is a folder; name a file, such as {str(Path(path) / 'detections.json')!r}")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--json {path!r}: its folder cannot be made ({error}); name another file") from error


def write_json(path: str, records: list[dict[str, Any]]) -> None:
    """Write the detections to the file that --json names."""
    Path(path).write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def expand_inputs(paths: Sequence[str]) -> list[str]:
    """Files, the pictures of folders (sorted), and what glob patterns match; each once, in order.

    A file that does not exist is kept: it is reported when its turn comes.

    Raises:
        ValueError: a folder without a picture, or a pattern that matches nothing.
    """
    found: list[str] = []
    for path in paths:
        if Path(path).is_dir():
            inside = [str(p) for p in sorted(Path(path).iterdir()) if p.suffix.lower() in PICTURE_SUFFIXES]
            if not inside:
                raise ValueError(f"the folder {path!r} holds no picture ({', '.join(PICTURE_SUFFIXES)})")
            found += inside
        elif glob.has_magic(path) and not Path(path).exists():
            matched = sorted(p for p in glob.glob(path, recursive=True) if Path(p).is_file())
            if not matched:
                raise ValueError(f"the pattern {path!r} matches no file")
            found += matched
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def plan_outputs(inputs: list[str], output: str | None) -> list[tuple[str, Path | None]]:
    """Pair each input with the file to draw it into.

    `output` is one file if it has a picture's ending and there is one input, else a folder, in which equal
    file names get a number.

    Raises:
        ValueError: several inputs for one file, or an output that would overwrite an input.
    """
    if output is None:
        return [(path, None) for path in inputs]
    target = Path(output)
    if target.suffix.lower() in PICTURE_SUFFIXES and not target.is_dir():
        if len(inputs) > 1:
            raise ValueError(f"--output {output!r} is one file, but there are {len(inputs)} pictures; name a folder")
        planned = [target]
    else:
        names: dict[str, int] = {}  # name -> how often it was met
        for path in inputs:
            name = _writable(Path(path).name)
            while name in names:
                names[name] += 1
                numbered = Path(name).with_stem(f"{Path(name).stem}_{names[name]}").name
                if numbered not in names:
                    name = numbered
                    break
            names[name] = 1
        planned = [target / name for name in names]
    sources = {Path(path).resolve() for path in inputs}
    for file in planned:
        if file.resolve() in sources:
            raise ValueError(
                f"--output {output!r} would overwrite the input {str(file)!r}; name another folder or file"
            )
    return list(zip(inputs, planned))


def _writable(name: str) -> str:
    """`name`, as .png where Pillow cannot write such a file: here, where it is numbered if it clashes."""
    from PIL import Image

    kind = Image.registered_extensions().get(Path(name).suffix.lower())
    return name if kind in Image.SAVE else str(Path(name).with_suffix(".png"))


def run_pictures(
    predictor: GroundingPredictor,
    jobs: list[tuple[str, Path | None]],
    prompt: dict[str, Any],
    args: argparse.Namespace,
) -> int:
    """Detect in all pictures; those that fail are reported at the end. Returns the exit code."""
    from grounding_dino.cli.picture_run import PictureRun

    options = {**prompt, "box_threshold": args.confidence_threshold, "text_threshold": args.text_threshold}
    run = PictureRun(predictor, jobs, options, args.batch_size, args.workers, masks=bool(args.json))
    try:
        report = run()
    finally:  # also when stopped by Ctrl-C
        if args.json:
            write_json(args.json, run.report.records)
    report.print_failures(len(jobs))
    return 1 if report.failures else 0
