"""Frames of a video file or a camera, with the times at which they are shown."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # (H, W, 3) BGR

FRAMES_PER_SECOND = 15.0  # where a file or a camera does not say
MOST_FRAMES_PER_SECOND = 1000.0  # more is a file's unit of time, not its rate
_WHOLE = 0.95  # of a file's frames: their number in its header may be an estimate


class TimedFrame(NamedTuple):
    """A frame, and when it is shown, in seconds from the first."""

    time: float
    picture: Frame


class VideoSource:
    """A video file, or the first camera; iterated over once.

    Attributes:
        fps: frames a second: what the file or camera says, or else :data:`FRAMES_PER_SECOND`.
        length: how many frames the file says it has; 0 where it does not say, and of a camera.
        read: frames read so far.
    """

    def __init__(self, path: str | None) -> None:
        """
        Args:
            path: a file; None for the first camera.

        Raises:
            ValueError, FileNotFoundError: it cannot be opened.
        """
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"there is no video {path!r}")
        self.path = path
        self._capture = cv2.VideoCapture(0 if path is None else path)
        if not self._capture.isOpened():
            what = "the first camera" if path is None else f"the video {path!r}"
            raise ValueError(f"{what} cannot be opened by OpenCV")
        self.fps = _sane_rate(self._capture.get(cv2.CAP_PROP_FPS))
        length = self._capture.get(cv2.CAP_PROP_FRAME_COUNT) if path is not None else 0
        self.length = max(0, int(length)) if math.isfinite(length) else 0
        self.read = 0

    def __iter__(self) -> Iterator[TimedFrame]:
        """The frames until the source ends; times always rise, whatever a file says."""
        start, last = time.monotonic(), -math.inf
        first = None  # time of the first frame in the file, which need not be 0
        while True:
            good, picture = self._capture.read()
            if not good:
                return
            if self.path is None:
                shown = time.monotonic() - start
            else:
                said = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                first = said if first is None else first
                shown = said - first
            if not last < shown < last + 86400 and self.read:  # no times in the file, or broken ones
                shown = last + 1 / self.fps
            last = shown if self.read else 0.0
            self.read += 1
            yield TimedFrame(last, np.asarray(picture, dtype=np.uint8))

    def incomplete(self) -> str:
        """A sentence that much of the file could not be read, once it has ended; "" if it could."""
        if self.path is None or self.read >= _WHOLE * self.length:
            return ""
        return (
            f"the video {self.path!r} says that it has {self.length} frames, but only {self.read} can be read: it is "
            "cut off or damaged"
        )

    def close(self) -> None:
        """Let the file or camera go."""
        self._capture.release()


def _sane_rate(fps: float) -> float:
    return fps if math.isfinite(fps) and 0 < fps <= MOST_FRAMES_PER_SECOND else FRAMES_PER_SECOND
