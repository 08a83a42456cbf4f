"""Command line: a web page that detects in uploaded pictures what a text names."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from grounding_dino.cli.arguments import count, count_or_none, program

if TYPE_CHECKING:
    from grounding_dino.predictor import GroundingPredictor
    from grounding_dino.web.detection import Detector

logger = logging.getLogger(__name__)

EPILOG = """\
examples:
  %(prog)s
  %(prog)s --model swin_t_ogc=groundingdino_swint_ogc.pth --model coco/r50_panoptic=maskdino_r50_panoptic.pth
  %(prog)s --model output/mine/config.yaml=output/mine/model_final.pth --thresholds thresholds.json
  %(prog)s --host 0.0.0.0 --port 8080 --root-path /detector     # behind a proxy that serves it below /detector
Whoever reaches the address can use the page: the default is this machine alone. There is no --share, which would open
it to the world through somebody else's server; to use it from elsewhere, forward the port (ssh -L 7860:localhost:7860
machine), or put a proxy with a password before it.
The exit code is 0 after Ctrl-C, 2 on wrong usage."""


def build_parser() -> argparse.ArgumentParser:
    """The options; models are named as in the demo."""
    parser = argparse.ArgumentParser(
        prog=program("app.py"),
        description="A web page to try models on: upload a picture, name what to look for, see and download the "
        "result. It needs no network and asks nobody for anything.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models = parser.add_argument_group("models")
    models.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="CONFIG[=WEIGHTS]",
        help="a configuration (.yaml file or short name) and its checkpoint; may be given several times (default: the "
        "two small models that come with the package)",
    )
    models.add_argument(
        "--models-in-memory", type=count, default=2, metavar="N", help="models kept loaded (default: 2)"
    )
    models.add_argument("--device", help="cuda, cpu, ... (default: a GPU where there is one)")
    models.add_argument("--thresholds", metavar="FILE", help="thresholds by category, of tools/calibrate_thresholds.py")
    models.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="override the configurations; comes last",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-megapixels", type=count, default=50, metavar="N", help="largest picture in million pixels (default: 50)"
    )
    limits.add_argument(
        "--max-megabytes", type=count, default=32, metavar="N", help="largest file that is taken (default: 32)"
    )
    limits.add_argument(
        "--timeout", type=count, default=120, metavar="SECONDS", help="longest time for a picture (default: 120)"
    )
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)"
    )
    server.add_argument("--port", type=count_or_none, default=7860, help="its port; 0 takes a free one (default: 7860)")
    server.add_argument("--root-path", default="", metavar="PATH", help="the path below which a proxy serves the page")
    server.add_argument("--examples", metavar="FOLDER", help="pictures to choose from (default: four of drawn shapes)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    missing = [name for name in ("gradio", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        print(f'{parser.prog}: error: the page needs gradio: pip install "gradio>=6.31,<7"', file=sys.stderr)
        return 2
    from grounding_dino.web.examples import find_examples
    from grounding_dino.web.server import build_app, listen, own_folder, serve

    try:
        examples, detector = find_examples(args.examples), build_detector(args)
        with own_folder() as folder, listen(args.host, args.port) as listening:
            app = build_app(detector, examples, folder, args.root_path)
            host, port = listening.getsockname()[:2]
            address = f"http://{'localhost' if host in ('127.0.0.1', '::1') else host}:{port}{args.root_path}"
            names = ", ".join(detector.shelf.models)
            serve(app, listening, lambda: print(f"{names} at {address}   (Ctrl-C ends it)", flush=True))
    except KeyboardInterrupt:
        pass
    except (ValueError, TypeError, OSError) as error:
        logger.debug("the page stopped", exc_info=True)
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def build_detector(args: argparse.Namespace) -> Detector:
    """What answers the page's requests.

    Raises:
        OSError, ValueError: a model, weights or a file of thresholds that cannot be used.
    """
    from grounding_dino.web.detection import Detector, Limits
    from grounding_dino.web.models import ModelShelf, ServedModel, served_models

    def load(model: ServedModel) -> GroundingPredictor:
        from grounding_dino.predictor import load_predictor

        return load_predictor(model.config, model.weights, args.device, args.opts)

    thresholds = None
    if args.thresholds:
        from grounding_dino.thresholds import CategoryThresholds

        thresholds = CategoryThresholds.load(args.thresholds)
    shelf = ModelShelf(served_models(args.model, args.opts), load, args.models_in_memory)
    limits = Limits(args.max_megapixels, args.max_megabytes << 20, args.timeout)
    return Detector(shelf, limits, thresholds)
