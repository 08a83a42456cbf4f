"""The demo with --track: numbers and colours that stay, the prompt read once, and what is left after Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path

from grounding_dino.cli.demo import main
from grounding_dino.predictor import load_predictor
from grounding_dino.video.writer import FrameWriter
from grounding_dino.visualization import color_of

import cv2
import numpy as np
import pytest

FRAMES, FPS = 14, 10.0
NAMES = ("--categories", "red circle", "blue star")
# the shipped model on a small picture: half the size that it is made for, and three times as fast
SMALL = ["--device", "cpu", "--opts", "INPUT.MIN_SIZE_TEST", "160", "INPUT.MAX_SIZE_TEST", "240"]


def star(x: float, y: float, radius: float) -> np.ndarray:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2, 0.45 * radius, radius)
    return np.rint(np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)).astype(np.int32)


def scene(t: int) -> np.ndarray:
    """A red circle that goes right and a blue star that goes left, past it; another red circle sinks out of sight."""
    picture = np.full((288, 384, 3), (225, 235, 225), dtype=np.uint8)
    cv2.circle(picture, (60 + 18 * t, 110), 34, (40, 40, 220), -1, cv2.LINE_AA)
    cv2.fillPoly(picture, [star(330 - 18 * t, 190, 42)], (210, 70, 40), cv2.LINE_AA)
    cv2.circle(picture, (60, 230 + 12 * t), 30, (40, 40, 220), -1, cv2.LINE_AA)
    return picture


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("film") / "in.mp4"
    writer = FrameWriter(file, FPS)
    for t in range(FRAMES):
        writer.write(scene(t), t / FPS)
    writer.close()
    return file


def frames_of(file: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(file))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


@pytest.mark.slow
def test_objects_keep_their_numbers_and_colours(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = load_predictor("shapes_tiny", None, "cpu", SMALL[3:])
    encoded = []
    predictor.model.text_encoder.bert.register_forward_hook(lambda *arguments: encoded.append(1))
    monkeypatch.setattr("grounding_dino.predictor.load_predictor", lambda *arguments: predictor)
    output, numbers = tmp_path / "out.mp4", tmp_path / "out.json"
    arguments = ["--video-input", str(film), "--output", str(output), "--json", str(numbers), "--track", *NAMES]
    assert main([*arguments, "--batch-size", "3"]) == 0
    assert len(encoded) == 1, "the prompt's text is encoded once for all frames"

    records = json.loads(numbers.read_text())
    assert [record["frame"] for record in records] == list(range(FRAMES))
    assert [record["time"] for record in records] == pytest.approx([t / FPS for t in range(FRAMES)], abs=1e-3)
    tracks: dict[int, list[tuple[int, str, float]]] = {}
    tops: dict[int, float] = {}
    for record in records:
        for found in record["detections"]:
            tracks.setdefault(found["track"], []).append((record["frame"], found["label"], found["box"][0]))
            tops.setdefault(found["track"], found["box"][1])
    assert len(tracks) == 3
    right, left, sinking = (tracks[number] for number in sorted(tracks, key=lambda number: tops[number]))
    for seen, label in ((right, "red circle"), (left, "blue star"), (sinking, "red circle")):
        assert {name for _, name, _ in seen} == {label}
    assert [frame for frame, *_ in right] == [frame for frame, *_ in left] == list(range(FRAMES))
    assert right[-1][2] > 240 and left[-1][2] < 100 and 2 < sinking[-1][0] < FRAMES - 1

    drawn = frames_of(output)
    assert len(drawn) == FRAMES
    number = next(number for number, seen in tracks.items() if seen is left)
    for picture, (_, _, x) in zip(drawn, left):
        edge = picture[180:200, max(0, round(x) - 1) : round(x) + 1].reshape(-1, 3).mean(axis=0)[::-1]
        assert np.abs(edge - 255 * color_of(number)).max() < 90, "a track keeps its colour"
    said = capsys.readouterr().out
    assert f"{FRAMES} frames in" in said and "real-time factor" in said and "3 tracks" in said and "H.264" in said


@pytest.mark.slow
def test_ctrl_c_leaves_a_video_that_plays(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from grounding_dino.cli import video

    real, drawn = video.draw_results, []

    def draw(*arguments):
        drawn.append(1)
        if len(drawn) > 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(video, "draw_results", draw)
    output, numbers = tmp_path / "out.mp4", tmp_path / "out.json"
    arguments = ["--video-input", str(film), "--output", str(output), "--json", str(numbers), "--track", *NAMES]
    assert main([*arguments, *SMALL]) == 130
    assert len(frames_of(output)) == 5 and len(json.loads(numbers.read_text())) == 6
    captured = capsys.readouterr()
    assert "interrupted" in captured.err and "frames/s" in captured.out


@pytest.mark.slow
def test_a_webcam_is_followed_too(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: real(str(film) if source == 0 else source))
    monkeypatch.setattr("grounding_dino.cli.video.has_window", lambda: False)
    arguments = ["--webcam", "--json", str(tmp_path / "cam.json"), "--track", "--track-buffer", "5", *NAMES]
    assert main([*arguments, *SMALL]) == 0
    records = json.loads((tmp_path / "cam.json").read_text())
    assert len(records) == FRAMES and all("track" in found for record in records for found in record["detections"])
    times = [record["time"] for record in records]
    assert times == sorted(set(times)) and times[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "x.png", *NAMES], "--video-input or --webcam"),
        (
            ["--video-input", "x.mp4", "--config-file", "mask_dino/shapes_tiny_panoptic"],
            "--opts TEST.PANOPTIC_ON False",
        ),
        (["--video-input", "x.mp4", *NAMES, "--track-buffer", "-1"], "between 0 and 3600"),
        (["--video-input", "x.mp4", *NAMES, "--track-buffer", "long"], "not a number of seconds"),
    ],
)
def test_wrong_usage_is_said_in_words(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--track"])
    assert stopped.value.code == 2 and words in " ".join(capsys.readouterr().err.split())


def test_without_the_tracker_nothing_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trackers", None)
    assert main(["--video-input", "x.mp4", "--track", *NAMES]) == 2
    assert 'pip install "trackers' in capsys.readouterr().err
