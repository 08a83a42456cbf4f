"""The demo on a video file or a camera."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grounding_dino.cli.demo import write_json
from grounding_dino.predictor import GroundingPredictor
from grounding_dino.result_records import result_records
from grounding_dino.visualization import draw_results

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

WINDOW = "detections"
CAMERA_FRAMES_PER_SECOND = 15.0  # where the camera does not say
_CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}


def run_video(predictor: GroundingPredictor, path: str | None, prompt: dict[str, Any], args: argparse.Namespace) -> int:
    """Detect in every frame of the file, or of the first camera where `path` is None; returns the exit code.

    Raises:
        ValueError: the video or camera cannot be opened, or there is neither --output, --json nor a window.
    """
    source = open_source(path)
    show = path is None or not (args.output or args.json)
    if show and not has_window():
        if not (args.output or args.json):
            raise ValueError("no window can be opened here: give --output FILE or --json FILE")
        show = False
    fps = source.get(cv2.CAP_PROP_FPS) or CAMERA_FRAMES_PER_SECOND
    total = int(source.get(cv2.CAP_PROP_FRAME_COUNT)) if path is not None else 0
    writer = FrameWriter(output_file(args.output, path), fps) if args.output else None
    records = []
    try:
        for number, frames in enumerate(batches(tqdm(frames_of(source), total=total or None, unit="frame"), args)):
            results = predictor(
                frames,
                box_threshold=args.confidence_threshold,
                text_threshold=args.text_threshold,
                image_format="BGR",
                **prompt,
            )
            for offset, (frame, found) in enumerate(zip(frames, results)):
                found_there = result_records(found, masks=bool(args.json))
                records.append({"frame": number * args.batch_size + offset, **found_there})
                if writer is None and not show:
                    continue
                drawn = draw_results(np.ascontiguousarray(frame[..., ::-1]), found)[..., ::-1]
                if writer is not None:
                    writer.write(drawn)
                if show and not show_frame(drawn):
                    return 0
    except KeyboardInterrupt:
        if path is not None:
            raise
    finally:
        source.release()
        if writer is not None:
            writer.close()
        if args.json:
            write_json(args.json, records)
        if show:
            cv2.destroyAllWindows()
    if path is not None and not records:
        raise ValueError(f"the video {path!r} has no frame that can be read")
    return 0


def open_source(path: str | None) -> cv2.VideoCapture:
    """The opened video file or first camera.

    Raises:
        ValueError, FileNotFoundError: it cannot be opened.
    """
    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(f"there is no video {path!r}")
    source = cv2.VideoCapture(0 if path is None else path)
    if not source.isOpened():
        what = "the first camera" if path is None else f"the video {path!r}"
        raise ValueError(f"{what} cannot be opened by OpenCV")
    return source


def frames_of(source: cv2.VideoCapture) -> Iterator[NDArray[np.uint8]]:
    """The frames, (H, W, 3) BGR, until the source ends."""
    while True:
        good, frame = source.read()
        if not good:
            return
        yield np.asarray(frame, dtype=np.uint8)


def batches(frames: Iterator[NDArray[np.uint8]], args: argparse.Namespace) -> Iterator[list[NDArray[np.uint8]]]:
    """The frames in lists of `args.batch_size`."""
    frames = iter(frames)
    while batch := list(itertools.islice(frames, args.batch_size)):
        yield batch


def output_file(output: str, path: str | None) -> Path:
    """The video to write: `output` itself if it has a video's ending, else a file in that folder.

    Raises:
        ValueError: it is the input.
    """
    target = Path(output)
    if target.suffix.lower() not in _CODECS:
        target = target / (f"{Path(path).stem}.mp4" if path is not None else "webcam.mp4")
    if path is not None and target.resolve() == Path(path).resolve():
        raise ValueError(f"--output {output!r} would overwrite the input; name another file or folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


class FrameWriter:
    """Writes frames to a video file, opened at the first frame, whose size it takes."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame (H, W, 3) BGR.

        Raises:
            ValueError: OpenCV cannot write this kind of file here.
        """
        if self._writer is None:
            codec = cv2.VideoWriter.fourcc(*_CODECS[self.path.suffix.lower()])
            self._writer = cv2.VideoWriter(str(self.path), codec, self.fps, (frame.shape[1], frame.shape[0]))
            if not self._writer.isOpened():
                raise ValueError(f"OpenCV cannot write the video {str(self.path)!r}; try the ending .avi")
        self._writer.write(np.ascontiguousarray(frame))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()


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
