"""The demo's command line: inputs, outputs, exit codes, and what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from grounding_dino.cli.demo import build_parser, expand_inputs, main, plan_outputs, prompt_of, take_example
from grounding_dino.model_zoo import EXAMPLE_CATEGORIES, build_model, load_cfg
from grounding_dino.predictor import load_predictor
from grounding_dino.tables import format_table

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

TINY = [
    "MODEL.DEVICE", "cpu",
    "MODEL.PIXEL_DECODER.NUM_LAYERS", "1",
    "MODEL.TRANSFORMER_DECODER.NUM_LAYERS", "1",
    "MODEL.TEXT_ENCODER.NUM_LAYERS", "1",
    "MODEL.QUERY_SELECTION.NUM_QUERIES", "3",
    "INPUT.MIN_SIZE_TEST", "64",
    "INPUT.MAX_SIZE_TEST", "96",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from safetensors.torch import save_model

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(build_model(load_cfg("shapes_tiny", TINY)), str(file))
    return str(file)


@pytest.fixture(scope="module")
def predictor(weights):
    return load_predictor("shapes_tiny", weights, "cpu", TINY)


@pytest.fixture
def run(predictor, monkeypatch):
    """Run the demo with the small model, loaded once, and all its detections."""
    monkeypatch.setattr("grounding_dino.predictor.load_predictor", lambda *arguments: predictor)

    def call(*arguments, names=("--categories", "red circle", "blue star")):
        return main([*map(str, arguments), *names, "--confidence-threshold", "0"])

    return call


@pytest.fixture
def folder(tmp_path):
    """Three pictures and a text file."""
    path = tmp_path / "in"
    path.mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path / f"{i}.png")
    (path / "notes.txt").write_text("no picture")
    return path


# Pictures


def test_folder_to_folder(run, folder, tmp_path, capsys):
    assert run("--input", folder, "--output", tmp_path / "out", "--json", tmp_path / "out.json") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "2.png"]
    assert Image.open(tmp_path / "out" / "0.png").size == (60, 40)
    records = json.loads((tmp_path / "out.json").read_text())
    assert [Path(r["file_name"]).name for r in records] == ["0.png", "1.png", "2.png"]
    assert (records[0]["width"], records[0]["height"]) == (60, 40)
    assert len(records[0]["detections"]) == 3
    first = records[0]["detections"][0]
    assert first["label"] in ("red circle", "blue star") and first["category"] in (0, 1)
    assert 0 <= first["score"] <= 1 and len(first["box"]) == 4
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == f"{folder}/0.png: 3 detections" and lines[1].split()[:2] == ["label", "score"]
    assert {len(line) for line in lines[1:5]} == {len(lines[1])}  # aligned
    assert "3/3" in captured.err  # the progress bar


def test_one_picture_to_one_file(weights, folder, tmp_path, capsys):
    arguments = ["--input", folder / "0.png", "--output", tmp_path / "deep" / "b.jpg", "--categories", "star"]
    assert main([*map(str, arguments), "--weights", weights, "--opts", *TINY]) == 0
    assert Image.open(tmp_path / "deep" / "b.jpg").format == "JPEG"
    assert capsys.readouterr().err == ""  # no progress bar for one


def test_without_output_only_the_table(run, folder, capsys):
    assert run("--input", folder / "0.png") == 0
    assert "0.png: 3 detections" in capsys.readouterr().out


def test_batches_give_the_same(run, folder, tmp_path):
    for size in (1, 2, 3):
        assert run("--input", folder, "--batch-size", size, "--json", tmp_path / f"{size}.json") == 0
    texts = [json.loads((tmp_path / f"{size}.json").read_text()) for size in (1, 2, 3)]
    for records in texts[1:]:
        for one, other in zip(texts[0], records):
            assert [d["score"] for d in one["detections"]] == pytest.approx(
                [d["score"] for d in other["detections"]], abs=1e-3
            )


@pytest.mark.parametrize("size", [1, 4])
def test_bad_pictures_are_reported_and_the_others_done(run, folder, tmp_path, capsys, size):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:500])
    missing = tmp_path / "missing.jpg"
    code = run(
        "--input", missing, folder, "--output", tmp_path / "out", "--json", tmp_path / "o.json", "--batch-size", size
    )
    assert code == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.png", "2.png"]
    error = capsys.readouterr().err
    assert "2 of 4 pictures failed" in error and str(missing) in error and "1.png" in error
    records = json.loads((tmp_path / "o.json").read_text())
    assert [("error" in record) for record in records].count(True) == 2 and len(records) == 4


@pytest.mark.parametrize("size", [1, 3])
def test_pictures_that_the_model_fails_on_are_reported(run, folder, predictor, tmp_path, capsys, monkeypatch, size):
    prepare = predictor.prepare

    def fail(picture):
        if picture.shape[0] == 7:
            raise RuntimeError("out of memory")
        return prepare(picture)

    monkeypatch.setattr(predictor, "prepare", fail)
    Image.new("RGB", (7, 7)).save(folder / "1.png")
    Image.new("RGB", (3000, 2)).save(folder / "thin.png")
    assert run("--input", folder, "--json", tmp_path / "o.json", "--batch-size", size) == 1
    error = capsys.readouterr().err
    assert "1 of 4 pictures failed" in error and f"{folder / '1.png'}: out of memory" in error
    records = {Path(record["file_name"]).name: record for record in json.loads((tmp_path / "o.json").read_text())}
    assert records["1.png"]["error"] == "out of memory" and len(records["thin.png"]["detections"]) == 3


def test_drawings_that_cannot_be_written_are_reported(run, folder, tmp_path, capsys):
    (tmp_path / "out" / "1.png").mkdir(parents=True)
    assert run("--input", folder, "--output", tmp_path / "out", "--json", tmp_path / "o.json") == 1
    assert "1 of 3 pictures failed" in capsys.readouterr().err
    records = json.loads((tmp_path / "o.json").read_text())
    assert [("error" in record, len(record["detections"])) for record in records] == [(False, 3), (True, 3), (False, 3)]


def test_caption_and_text(run, folder, tmp_path):
    for names in (["--caption", "a red circle"], ["--text", "red circle . blue star ."]):
        assert run("--input", folder / "0.png", "--json", tmp_path / "o.json", names=names) == 0
        (record,) = json.loads((tmp_path / "o.json").read_text())
        assert ("category" in record["detections"][0]) == (names[0] == "--text")


# Prompts, inputs and outputs


def prompt(*arguments):
    return prompt_of(build_parser().parse_args(["--input", "a", *arguments]))


def test_prompts():
    assert prompt("--text", "cat . traffic light.dog .") == {"categories": ["cat", "traffic light", "dog"]}
    assert prompt("--categories", "cat", "a dog") == {"categories": ["cat", "a dog"]}
    assert prompt("--caption", "a cat.") == {"caption": "a cat."}
    with pytest.raises(ValueError, match="nothing to look for"):
        prompt("--text", " . ")


def test_the_example_brings_its_pictures_and_names():
    for given, expected in ([], list(EXAMPLE_CATEGORIES)), (["--categories", "cat"], ["cat"]):
        args = build_parser().parse_args(["--example", *given])
        take_example(args)
        assert args.categories == expected and len(expand_inputs(args.input)) == 4
    args = build_parser().parse_args(["--example", "--config-file", "shapes_tiny_panoptic"])
    take_example(args)
    assert args.categories is None  # its classes are fixed


def test_inputs_are_expanded(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert expand_inputs(["*.png", "0.png", "gone.jpg"]) == ["0.png", "1.png", "2.png", "gone.jpg"]
    assert expand_inputs(["."]) == ["0.png", "1.png", "2.png"]
    Path("odd[1].png").touch()  # a name that looks like a pattern
    assert expand_inputs(["odd[1].png"]) == ["odd[1].png"]
    with pytest.raises(ValueError, match="matches no file"):
        expand_inputs(["*.jpg"])
    Path("empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        expand_inputs(["empty"])


def test_outputs_never_meet(tmp_path):
    planned = [str(file.relative_to(tmp_path)) for _, file in plan_outputs(["a/x.png", "b/x.png"], str(tmp_path))]
    assert planned == ["x.png", "x_2.png"]
    taken = ["a/x.png", "a/x_2.png", "b/x.png", "c/x.png", "b/x_2.png"]
    names = [file.name for _, file in plan_outputs(taken, str(tmp_path))]
    assert names == ["x.png", "x_2.png", "x_3.png", "x_4.png", "x_2_2.png"]
    odd = ["a/x.raw", "b/x.png", "c/x"]  # only the second can be written under its name
    assert [file.name for _, file in plan_outputs(odd, str(tmp_path))] == ["x.png", "x_2.png", "x_3.png"]
    many = [f"{i}/x.png" for i in range(20_000)]
    assert len({file for _, file in plan_outputs(many, str(tmp_path))}) == len(many)
    with pytest.raises(ValueError, match="one file"):
        plan_outputs(["a.png", "b.png"], "out.png")
    with pytest.raises(ValueError, match="overwrite"):
        plan_outputs([str(tmp_path / "a.png")], str(tmp_path))


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "x.png", "--categories", "..."], "no word"),
        (["--input", "y*.png", "--categories", "a"], "matches no file"),
        (["--input", "x.png", "--categories", "a", "--config-file", "no_such"], "no_such"),
        (["--input", "x.png", "--categories", "a", "--weights", "no_such.pth"], "no_such.pth"),
        (["--video-input", "no_such.mp4", "--categories", "a"], "no_such.mp4"),
        (["--input", "x.png", "--categories", "a", "--json", "."], "--json '.' is a folder"),
        (["--video-input", "x.avi", "--categories", "a", "--json", "."], "--json '.' is a folder"),
        (["--input", "x.png", "--categories", "a", "--json", "x.png/o.json"], "folder cannot be made"),
        (["--input", "x.png", "--categories", "a", "--device", "gpu"], "there is no device 'gpu'"),
    ],
)
def test_wrong_usage_is_a_sentence(weights, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save("x.png")
    if "--weights" not in arguments:
        arguments = [*arguments, "--weights", weights]
    assert main([*arguments, "--opts", *TINY]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["INPUT.MIN_SIZE_TESTS", "64"], "did you mean INPUT.MIN_SIZE_TEST"),
        (["INPUT.MIN_SIZE_TEST"], "one is left over"),
    ],
)
def test_wrong_configuration_options_are_a_sentence(folder, options, message, capsys):
    assert main(["--input", str(folder / "0.png"), "--categories", "a", "--opts", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_threshold_that_is_no_number(capsys):
    with pytest.raises(SystemExit):
        main(["--input", "x.png", "--categories", "a", "--confidence-threshold", "abc"])
    assert "'abc' is not a number; give one in [0, 1]" in capsys.readouterr().err


def test_a_number_of_workers_that_is_none(capsys):
    with pytest.raises(SystemExit):
        main(["--input", "x.png", "--categories", "a", "--workers", "-1"])
    assert "-1 is negative; give 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--input", "x.png"],
        ["--categories", "cat"],
        ["--input", "x.png", "--categories", "a", "--caption", "b"],
        ["--input", "x.png", "--video-input", "y.mp4", "--categories", "a"],
        ["--input", "x.png", "--categories", "a", "--confidence-threshold", "35"],
        ["--input", "x.png", "--categories", "a", "--batch-size", "0"],
        ["--input", "x.png", "--categories", "a", "--batch-size", "two"],
    ],
)
def test_wrong_options_end_with_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage:" in capsys.readouterr().err


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom grounding_dino.cli.demo import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'cv2', 'numpy', 'detectron2'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    documented = "config-file input output confidence-threshold opts video-input webcam weights batch-size"
    for flag in (*documented.split(), "text", "categories", "caption", "text-threshold", "json"):
        assert f"--{flag}" in done.stdout


# Video


@pytest.fixture
def video(tmp_path):
    file = tmp_path / "in.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (64, 48))
    for i in range(5):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    return file


@pytest.mark.parametrize("output", ["out.mp4", "out.avi", "folder"])
def test_video(run, video, tmp_path, output):
    code = run("--video-input", video, "--output", tmp_path / output, "--json", tmp_path / "o.json", "--batch-size", 2)
    assert code == 0
    written = tmp_path / output if "." in output else tmp_path / output / "in.mp4"
    frames = cv2.VideoCapture(str(written))
    assert frames.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and frames.get(cv2.CAP_PROP_FPS) == pytest.approx(5.0)
    records = json.loads((tmp_path / "o.json").read_text())
    assert [record["frame"] for record in records] == [0, 1, 2, 3, 4] and len(records[0]["detections"]) == 3


def test_video_makes_the_folder_of_its_numbers(run, video, tmp_path):
    assert run("--video-input", video, "--json", tmp_path / "new" / "o.json") == 0
    assert len(json.loads((tmp_path / "new" / "o.json").read_text())) == 5


def test_video_without_a_window_needs_an_output(run, video, monkeypatch, capsys):
    monkeypatch.setattr("grounding_dino.cli.video.has_window", lambda: False)
    assert run("--video-input", video) == 2
    assert "--output" in capsys.readouterr().err


def test_a_window_shows_frames_until_a_key(run, video, monkeypatch):
    shown = []
    monkeypatch.setattr("grounding_dino.cli.video.has_window", lambda: True)
    monkeypatch.setattr(
        "grounding_dino.cli.video.show_frame", lambda frame: shown.append(frame.shape) or len(shown) < 2
    )
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    assert run("--video-input", video) == 0
    assert shown == [(48, 64, 3)] * 2


def test_webcam(run, video, monkeypatch, tmp_path, capsys):
    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: real(str(video) if source == 0 else source))
    monkeypatch.setattr("grounding_dino.cli.video.has_window", lambda: False)
    assert run("--webcam", "--output", tmp_path / "cam.avi") == 0
    assert real(str(tmp_path / "cam.avi")).get(cv2.CAP_PROP_FRAME_COUNT) == 5
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: real("no such camera"))
    assert run("--webcam", "--output", tmp_path / "cam2.avi") == 2
    assert "first camera" in capsys.readouterr().err


def test_a_video_that_is_cut_off_gives_what_it_has(run, video, tmp_path, capsys):
    content = video.read_bytes()
    third = -1
    for _ in range(3):
        third = content.index(b"00dc", third + 1)  # where a frame begins
    video.write_bytes(content[:third])
    assert run("--video-input", video, "--output", tmp_path / "o.mp4", "--json", tmp_path / "o.json") == 1
    captured, records = capsys.readouterr(), json.loads((tmp_path / "o.json").read_text())
    assert "cut off" in captured.err and 0 < len(records) < 4 and "frames/s" in captured.out
    assert cv2.VideoCapture(str(tmp_path / "o.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == len(records)


@pytest.mark.parametrize("content", [b"", b"no video" * 99])
def test_what_is_no_video_is_refused(run, tmp_path, capsys, content):
    (tmp_path / "in.mp4").write_bytes(content)
    assert run("--video-input", tmp_path / "in.mp4", "--output", tmp_path / "o.mp4") == 2
    assert "in.mp4' cannot be opened" in capsys.readouterr().err and not (tmp_path / "o.mp4").exists()


def test_a_video_is_not_overwritten(run, video, capsys):
    assert run("--video-input", video, "--output", video) == 2
    assert "overwrite" in capsys.readouterr().err


# Tables


def test_tables_are_aligned_also_with_wide_letters():
    lines = format_table(["name", "x"], [["猫", "1"], ["dog", "100"]], indent="").splitlines()
    assert lines == ["name    x", "猫      1", "dog   100"]
