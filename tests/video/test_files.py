"""Videos that are read and written: times, sizes, formats, and files that are cut off or damaged."""

from __future__ import annotations

import sys
import types
from pathlib import Path

from grounding_dino.video.source import FRAMES_PER_SECOND, VideoSource
from grounding_dino.video.writer import FrameWriter

import cv2
import numpy as np
import pytest

TIMES = [0.0, 0.04, 0.08, 0.3, 0.34, 1.0, 1.1]


def picture(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size, 3), 25 * number, dtype=np.uint8)


def write(path: Path, times: list[float], fps: float, size: tuple[int, int] = (48, 64)) -> FrameWriter:
    writer = FrameWriter(path, fps)
    for number, time in enumerate(times):
        writer.write(picture(number, size), time)
    writer.close()
    return writer


def read(path: Path) -> tuple[VideoSource, list[float], list[np.ndarray]]:
    source = VideoSource(str(path))
    frames = list(source)
    source.close()
    return source, [frame.time for frame in frames], [frame.picture for frame in frames]


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "avi"])
@pytest.mark.parametrize("fps", [5.0, 29.97])
def test_what_is_written_is_read(tmp_path: Path, ending: str, fps: float) -> None:
    file = tmp_path / f"out.{ending}"
    writer = write(file, [number / fps for number in range(8)], fps)
    assert writer.codec == ("Motion JPEG" if ending == "avi" else "H.264")
    source, times, pictures = read(file)
    assert source.fps == pytest.approx(fps, rel=1e-3) and source.length == source.read == 8 and not source.incomplete()
    assert times == pytest.approx([number / fps for number in range(8)], abs=2e-3)
    assert [frame.mean() for frame in pictures] == pytest.approx([25 * number for number in range(8)], abs=8)


def test_browsers_play_it(tmp_path: Path) -> None:
    """H.264, 4:2:0, with the index before the pictures."""
    import av

    file = tmp_path / "out.mp4"
    write(file, TIMES, 25.0)
    with av.open(str(file)) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    content = file.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_frames_of_varying_length_keep_their_times(tmp_path: Path) -> None:
    write(tmp_path / "out.mp4", TIMES, 25.0)
    assert read(tmp_path / "out.mp4")[1] == pytest.approx(TIMES, abs=1e-3)


@pytest.mark.parametrize("size", [(47, 63), (1, 1), (48, 63)])
def test_odd_sizes_lose_nothing(tmp_path: Path, size: tuple[int, int]) -> None:
    write(tmp_path / "out.mp4", [0.0, 0.1], 10.0, size)
    _, _, pictures = read(tmp_path / "out.mp4")
    assert len(pictures) == 2 and pictures[0].shape[0] in (size[0], size[0] + 1)


def test_a_frame_of_another_size_is_fitted(tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path / "out.mp4", 10.0)
    writer.write(picture(0), 0.0)
    writer.write(picture(4, (96, 128)), 0.1)
    writer.close()
    assert [frame.shape for frame in read(tmp_path / "out.mp4")[2]] == [(48, 64, 3)] * 2


def test_without_pyav_opencv_writes_and_says_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    writer = write(tmp_path / "out.mp4", [0.0, 0.2], 5.0)
    assert writer.codec in ("H.264", "MPEG-4 Part 2") and len(read(tmp_path / "out.mp4")[1]) == 2
    assert ("pip install av" in caplog.text) == (writer.codec != "H.264")


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no_such_folder"):
        write(tmp_path / "no_such_folder" / "out.mp4", [0.0], 5.0)
    FrameWriter(tmp_path / "nothing.mp4", 5.0).close()
    assert not (tmp_path / "nothing.mp4").exists()


@pytest.mark.parametrize("ending", ["mp4", "avi"])
def test_a_video_that_is_cut_off_gives_what_it_has(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"cut.{ending}"
    rng = np.random.default_rng(0)
    writer = FrameWriter(file, 10.0)
    for number in range(40):
        writer.write(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8), number / 10)
    writer.close()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    source, times, _ = read(file)
    assert 5 < len(times) < 38
    sentence = source.incomplete()
    assert "40 frames" in sentence and str(len(times)) in sentence and "cut off" in sentence


@pytest.mark.parametrize("content", [b"", b"no video at all" * 50])
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "in.mp4"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="in.mp4"):
        VideoSource(str(file))
    with pytest.raises(FileNotFoundError, match="no_such"):
        VideoSource(str(tmp_path / "no_such.mp4"))


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf"), 90000.0])
def test_a_file_without_a_rate_and_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fps: float) -> None:
    file = tmp_path / "in.avi"
    write(file, [0.0, 0.1, 0.2], 10.0)
    silent = {cv2.CAP_PROP_FPS: fps, cv2.CAP_PROP_POS_MSEC: 0.0, cv2.CAP_PROP_FRAME_COUNT: -9.2e18}

    real = cv2.VideoCapture(str(file))
    capture = types.SimpleNamespace(isOpened=real.isOpened, read=real.read, release=real.release, get=silent.get)
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: capture)
    source, times, _ = read(file)
    assert (source.fps, source.length) == (FRAMES_PER_SECOND, 0) and not source.incomplete()
    assert times == pytest.approx([0, 1 / FRAMES_PER_SECOND, 2 / FRAMES_PER_SECOND])
