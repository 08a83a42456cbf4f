"""The demo on a video file or a camera."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from grounding_dino.cli.demo import write_json
from grounding_dino.predictor import GroundingPredictor
from grounding_dino.result_records import result_records
from grounding_dino.video.source import TimedFrame, VideoSource
from grounding_dino.video.writer import SUFFIXES, FrameWriter
from grounding_dino.visualization import draw_results

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

WINDOW = "detections"


class FoundFrame(NamedTuple):
    """A frame's place in the video, the frame, and what was found in it."""

    number: int
    frame: TimedFrame
    found: Any


def run_video(predictor: GroundingPredictor, path: str | None, prompt: dict[str, Any], args: argparse.Namespace) -> int:
    """Detect in every frame of the file, or of the first camera where `path` is None; returns the exit code.

    Raises:
        ValueError: the video or camera cannot be opened, or there is neither --output, --json nor a window.
    """
    source = VideoSource(path)
    show = path is None or not (args.output or args.json)
    if show and not has_window():
        if not (args.output or args.json):
            raise ValueError("no window can be opened here: give --output FILE or --json FILE")
        show = False
    writer = FrameWriter(output_file(args.output, path), source.fps) if args.output else None
    records: list[dict[str, Any]] = []
    start = time.monotonic()
    try:
        for item in found_frames(predictor, source, prompt, args):
            results = result_records(item.found, masks=bool(args.json))
            records.append({"frame": item.number, "time": round(item.frame.time, 4), **results})
            if writer is None and not show:
                continue
            drawn = draw_results(np.ascontiguousarray(item.frame.picture[..., ::-1]), item.found)[..., ::-1]
            if writer is not None:
                writer.write(drawn, item.frame.time)
            if show and not show_frame(drawn):
                return 0
    except KeyboardInterrupt:
        if path is not None:
            raise
    finally:
        source.close()
        if writer is not None:
            writer.close()
        if args.json:
            write_json(args.json, records)
        if show:
            cv2.destroyAllWindows()
        report(source, records, writer, time.monotonic() - start)
    if path is not None and not source.read:
        raise ValueError(f"the video {path!r} has no frame that can be read")
    incomplete = source.incomplete()
    if incomplete:
        print(incomplete, file=sys.stderr)
    return 1 if incomplete else 0


def found_frames(
    predictor: GroundingPredictor, source: VideoSource, prompt: dict[str, Any], args: argparse.Namespace
) -> Iterator[FoundFrame]:
    """What the model finds in each frame and, with --track, which object each detection is."""
    bar = tqdm(source, total=source.length or None, unit="frame")
    if not args.track:
        yield from detected(predictor, bar, prompt, args, args.confidence_threshold)
        return
    from grounding_dino.video.tracking import ObjectTracker, weaker

    tracker: ObjectTracker[FoundFrame] = ObjectTracker(source.fps, args.confidence_threshold, args.track_buffer)
    for item in detected(predictor, bar, prompt, args, weaker(args.confidence_threshold)):
        instances = item.found["instances"] if isinstance(item.found, Mapping) else item.found
        yield from map(_with_tracks, tracker.push(item, instances, item.frame.time))
    yield from map(_with_tracks, tracker.finish())


def detected(
    predictor: GroundingPredictor,
    frames: Iterable[TimedFrame],
    prompt: dict[str, Any],
    args: argparse.Namespace,
    threshold: Any,
) -> Iterator[FoundFrame]:
    """What the model finds in each frame, `args.batch_size` of them at once."""
    numbers = itertools.count()
    frames = iter(frames)
    while batch := list(itertools.islice(frames, args.batch_size)):
        results = predictor(
            [frame.picture for frame in batch],
            box_threshold=threshold,
            text_threshold=args.text_threshold,
            image_format="BGR",
            **prompt,
        )
        yield from (FoundFrame(next(numbers), frame, found) for frame, found in zip(batch, results))


def _with_tracks(tracked: tuple[FoundFrame, Any]) -> FoundFrame:
    item, instances = tracked
    found = {**item.found, "instances": instances} if isinstance(item.found, Mapping) else instances
    return item._replace(found=found)


def report(source: VideoSource, records: list[dict[str, Any]], writer: FrameWriter | None, elapsed: float) -> None:
    """Print how many frames were done, how fast, in proportion to the time that they show, and what was written."""
    if not records:
        return
    shown = records[-1]["time"] + 1 / source.fps
    speed = f"{len(records)} frames in {elapsed:.1f} s: {len(records) / elapsed:.1f} frames/s"
    if source.path is not None:  # a camera's frames come as fast as they are taken
        speed += f", real-time factor {shown / elapsed:.2f} ({shown:.1f} s of video)"
    tracks = {found["track"] for record in records for found in record.get("detections", ()) if "track" in found}
    print(speed + (f", {len(tracks)} tracks" if tracks else ""))
    if writer is not None:
        print(f"{writer.path}: {writer.codec}")


def output_file(output: str, path: str | None) -> Path:
    """The video to write: `output` itself if it has a video's ending, else a file in that folder.

    Raises:
        ValueError: it is the input.
    """
    target = Path(output)
    if target.suffix.lower() not in SUFFIXES:
        target = target / (f"{Path(path).stem}.mp4" if path is not None else "webcam.mp4")
    if path is not None and target.resolve() == Path(path).resolve():
        raise ValueError(f"--output {output!r} would overwrite the input; name another file or folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def has_window() -> bool:
    """Whether this OpenCV can open a window on this machine."""
    try:
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL)
    except cv2.error:
        return False
    return True


def show_frame(frame: NDArray[np.uint8]) -> bool:
    """Show a frame (H, W, 3) BGR; False once the user pressed q or Esc."""
    cv2.imshow(WINDOW, frame)
    return cv2.waitKey(1) & 0xFF not in (ord("q"), 27)
