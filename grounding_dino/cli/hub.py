"""`tools/hub.py`: models as folders with a card, pushed to a hub and pulled from it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from grounding_dino.cli.arguments import program


def build_parser() -> argparse.ArgumentParser:
    """One word for what to do, and its arguments."""
    parser = argparse.ArgumentParser(
        prog=program("hub.py"),
        description="Save a model as a folder that others can load, push it to a model hub, pull models from there.",
        epilog="example:\n"
        "  %(prog)s save --config-file shapes_tiny --output shapes --licence apache-2.0 \\\n"
        '      --training-data "drawn shapes" --result shapes_val=86.5 --name owner/shapes\n'
        "  %(prog)s push shapes owner/shapes\n"
        "  %(prog)s pull owner/shapes --output copy\n"
        "Wherever a configuration is named, as in --config-file, owner/shapes or ./copy does as well. Needs "
        "huggingface_hub\nbut for save; its variables HF_TOKEN, HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT hold.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="save|push|pull")
    save = actions.add_parser("save", help="write weights, configuration and card to a new folder")
    save.add_argument("--config-file", default="shapes_tiny", metavar="FILE", help="a .yaml file or a short name")
    save.add_argument("--weights", metavar="FILE", help="a checkpoint of any origin (default: the configuration's)")
    save.add_argument("--output", required=True, metavar="FOLDER", help="a new folder")
    save.add_argument("--licence", required=True, help="of the weights: apache-2.0, cc-by-nc-4.0, other, ...")
    save.add_argument("--training-data", required=True, metavar="TEXT", help="what the model was trained on")
    save.add_argument("--description", default="", metavar="TEXT", help="what it is for, and what it cannot do")
    save.add_argument("--name", default="", metavar="OWNER/NAME", help="as which it will be pushed")
    save.add_argument(
        "--result", action="append", default=[], type=result, metavar="DATA=AP", help="box AP in percent; repeatable"
    )
    save.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="override the configuration; last",
    )
    push = actions.add_parser("push", help="push such a folder")
    push.add_argument("folder", metavar="FOLDER")
    push.add_argument("name", metavar="OWNER/NAME")
    push.add_argument("--private", action="store_true", help="a new model is seen by its owner alone")
    push.add_argument("--message", default="", metavar="TEXT", help="of the commit")
    pull = actions.add_parser("pull", help="copy a model into a new folder")
    pull.add_argument("name", metavar="OWNER/NAME[@REVISION]")
    pull.add_argument("--output", required=True, metavar="FOLDER", help="a new folder")
    return parser


def result(text: str) -> tuple[str, float]:
    """A data set and its AP, written DATA=AP."""
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not name or not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not DATA=AP in percent, such as shapes_val=86.5")
    return name, number


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    from grounding_dino.hub import ModelCard, pull_from_hub, push_to_hub, save_model

    try:
        if args.action == "push":
            print(push_to_hub(args.folder, args.name, args.private, args.message))
        elif args.action == "pull":
            print(f"{args.output}: {', '.join(pull_from_hub(args.name, args.output))}")
        else:
            card = ModelCard(args.licence, args.training_data, dict(args.result), args.description, args.name)
            save_model(args.output, args.config_file, args.weights, args.opts, card=card)
            print(f"{args.output}: config.yaml, model.safetensors and the card, README.md; look it through")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
