"""`tools/benchmark.py --folder`: pictures a second of a folder run, beside those of the model alone."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from grounding_dino.cli.arguments import count, count_or_none, share
from grounding_dino.cli.benchmark_operator import Timing, measure
from grounding_dino.cli.demo import expand_inputs, plan_outputs
from grounding_dino.cli.picture_run import PictureRun, batches_for
from grounding_dino.model_zoo import SHIPPED_MODEL, load_cfg
from grounding_dino.pictures import read_picture
from grounding_dino.predictor import GroundingPredictor, load_predictor
from grounding_dino.tables import format_table

NAMES = ["red circle", "blue star", "green square"]


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """What goes with `--folder`."""
    folder = parser.add_argument_group("--folder")
    folder.add_argument("--pictures", type=count, default=100, help="how many, from the start again (default 100)")
    folder.add_argument("--workers", type=count_or_none, metavar="N", help="processes beside the model, as in the demo")
    folder.add_argument(
        "--threshold", type=share, default=0.1, help="least score of a detection that is drawn (default 0.1)"
    )


def folder_report(args: argparse.Namespace, repeats: int) -> list[dict[str, Any]]:
    """Measure what the flags name, and print a table; see :func:`measure_folder`.

    Raises:
        ValueError, OSError: no such pictures, configuration or device.
    """
    paths = expand_inputs(args.folder)
    paths = [paths[number % len(paths)] for number in range(args.pictures)]
    records = []
    for name in args.config_file or [SHIPPED_MODEL]:
        predictor = _predictor(name, args.device or "cpu", args.opts)
        options: dict[str, Any] = {"box_threshold": args.threshold}
        if predictor.classes is None:
            options["categories"] = NAMES
        found = measure_folder(predictor, paths, options, args.batch, args.workers, repeats)
        records += [{"config": name, "batch": args.batch, **record} for record in found]
    rows = [
        (
            f"{r['config']}, {r['run']}",
            f"{r['pictures'] / r['time']['median']:.2f}",
            str(Timing(**r["time"])),
            f"{r['detections']:.1f}",
            f"{r['share']:.1%}",
        )
        for r in records
    ]
    head = (f"{len(paths)} pictures", "pictures/s", "time, median (range)", "drawn on each", "of the model alone")
    print(format_table(head, rows))
    return records


def measure_folder(
    predictor: GroundingPredictor,
    paths: Sequence[str],
    options: dict[str, Any],
    batch_size: int = 1,
    workers: int | None = None,
    repeats: int = 3,
) -> list[dict[str, Any]]:
    """Times of the model on inputs that are ready, of the run with workers, and of the run without, in turn.

    All three see the same batches; the runs also read, resize, draw and write, as the demo does.

    Args:
        options: of the predictor.
        workers: as :class:`PictureRun`'s.

    Returns:
        A record each: `run`, `pictures`, `time` in seconds, `detections` a picture, and `share`: the speed in that of
        the model alone.
    """
    batches = _batches(predictor, paths, batch_size)
    detections = 0

    def model() -> None:
        nonlocal detections
        detections = sum(_drawn(found) for batch in batches for found in predictor.detect(batch, **options))

    def run(count: int | None, out: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            report = PictureRun(predictor, plan_outputs(list(paths), out), options, batch_size, count)()
        if report.failures:
            raise ValueError("the picture {!r} cannot be used: {}".format(*report.failures[0]))

    with tempfile.TemporaryDirectory(prefix="benchmark-") as out:
        runs: dict[str, Callable[[], object]] = {
            "model alone": model,
            "run": functools.partial(run, workers, out),
            "run without workers": functools.partial(run, 0, out),
        }
        device = str(getattr(predictor.model, "device", "cpu"))
        timings = measure(list(runs.values()), repeats, device)
    common = {"pictures": len(paths), "detections": detections / len(paths)}
    return [
        {"run": name, **common, "time": time._asdict(), "share": timings[0].median / time.median}
        for name, time in zip(runs, timings)
    ]


def _drawn(found: Any) -> int:
    """How many segments or instances are drawn of a predictor's answer."""
    if not isinstance(found, dict):
        return len(found)
    return len(found["panoptic_seg"][1] if "panoptic_seg" in found else found.get("instances", ()))


def _predictor(name: str, device: str, opts: Sequence[Any]) -> GroundingPredictor:
    """The shipped model, or another with random weights, whose times are the same."""
    if name == SHIPPED_MODEL:
        return load_predictor(name, device=device, opts=opts)
    cfg = load_cfg(name, opts)
    cfg.merge_from_list(["MODEL.WEIGHTS", "", "MODEL.DEVICE", device])
    return GroundingPredictor(cfg)


def _batches(predictor: GroundingPredictor, paths: Sequence[str], batch_size: int) -> list[list[dict[str, Any]]]:
    """The model's inputs as a run has them."""
    read = {path: predictor.prepare(read_picture(path)) for path in dict.fromkeys(paths)}
    inputs = [read[path] for path in paths]
    former = batches_for(predictor, batch_size)
    formed = []
    for number, prepared in enumerate(inputs):
        height, width = prepared["image"].shape[-2:]
        formed += former.add(number, (height, width))
    return [[inputs[number] for number in batch] for batch in formed + former.rest()]
