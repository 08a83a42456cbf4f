"""Video files that browsers play: H.264 by PyAV where it is installed, else what OpenCV can."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Frame = NDArray[np.uint8]  # (H, W, 3) BGR

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi")
_CODECS = {".avi": ("MJPG",)}  # of OpenCV, by the file's ending; other endings:
_OTHERS = ("avc1", "mp4v")
_NAMES = {"MJPG": "Motion JPEG", "avc1": "H.264", "mp4v": "MPEG-4 Part 2"}
_TICKS = 90_000  # a second, as in MPEG: holds the times of all usual rates
_QUALITY = {"preset": "veryfast", "crf": "20"}  # a third larger than the default's files, in a fraction of the time


class _Encoder(Protocol):
    name: str

    def write(self, frame: Frame, time: float) -> None: ...

    def close(self) -> None: ...


class FrameWriter:
    """Writes frames to a video file, which is opened at the first frame and takes its size.

    What was written before :meth:`close` can be played, also if not all frames came.

    Attributes:
        codec: the name of the file's format, once there is a frame.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self.codec = ""
        self._encoder: _Encoder | None = None
        self._size = (0, 0)

    def write(self, frame: Frame, time: float) -> None:
        """Append a frame (H, W, 3) BGR that is shown `time` seconds after the first.

        OpenCV's files know a rate alone, no times: there each frame is shown for as long as the others.

        Raises:
            ValueError: this kind of file cannot be written here.
        """
        if self._encoder is None:
            self._size = frame.shape[1], frame.shape[0]
            self._encoder = _open(self.path, self.fps, self._size)
            self.codec = self._encoder.name
        if (frame.shape[1], frame.shape[0]) != self._size:  # a stream may change its size on the way
            frame = np.asarray(cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        self._encoder.write(np.ascontiguousarray(frame), time)

    def close(self) -> None:
        """Finish the file."""
        if self._encoder is not None:
            self._encoder.close()


def _open(path: Path, fps: float, size: tuple[int, int]) -> _Encoder:
    if path.suffix.lower() not in _CODECS and importlib.util.find_spec("av") is not None:
        with contextlib.suppress(_NoEncoder):
            return _PyAvEncoder(path, fps, size)
    return _OpenCvEncoder(path, fps, size)


class _NoEncoder(Exception):
    """This build of PyAV has no encoder for H.264."""


class _PyAvEncoder:
    """H.264 with the times of the frames."""

    name = "H.264"

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        import av

        try:
            av.codec.Codec("libx264", "w")
        except av.error.FFmpegError as error:
            raise _NoEncoder from error
        self.path = path
        options = {"movflags": "faststart"} if path.suffix.lower() in (".mp4", ".mov") else {}
        with self._sentences():
            self._file: Any = av.open(str(path), "w", options=options)
        self._stream: Any = self._file.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options=_QUALITY
        )
        self._stream.width, self._stream.height = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"  # the only one that all browsers play; it takes even sizes alone
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._frame_ticks = max(1, round(_TICKS / fps))
        self._last = -1

    def write(self, frame: Frame, time: float) -> None:
        """Append a frame."""
        import av

        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture: Any = av.VideoFrame.from_ndarray(frame, format="bgr24")
        self._last = max(round(time * _TICKS), self._last + 1)
        picture.pts, picture.time_base = self._last, Fraction(1, _TICKS)
        picture.duration = self._frame_ticks
        with self._sentences():
            self._file.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Write what the encoder still holds, and the file's index."""
        with self._sentences():
            self._file.mux(self._stream.encode())
            self._file.close()

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        import av

        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            raise ValueError(f"the video {str(self.path)!r} cannot be written: {error}") from error


class _OpenCvEncoder:
    """The first format that this OpenCV can write into the file."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        for code in _CODECS.get(path.suffix.lower(), _OTHERS):
            with _quiet():
                self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), fps, size)
            if self._writer.isOpened():
                break
        else:
            raise ValueError(f"OpenCV cannot write the video {str(path)!r}; try the ending .avi")
        self.name = _NAMES[code]
        if code == "mp4v":
            logger.warning(
                "%s is written as MPEG-4 Part 2, which players know but browsers do not: this OpenCV has no encoder "
                "for H.264, and PyAV is not installed (pip install av)",
                path,
            )

    def write(self, frame: Frame, time: float) -> None:
        """Append a frame; its time is not written."""
        self._writer.write(frame)

    def close(self) -> None:
        """Write the file's index."""
        self._writer.release()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """OpenCV and its FFmpeg keep to themselves that they lack an encoder."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    log: Any = cv2.utils.logging
    before = log.getLogLevel()
    log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(before)
