"""`tools/visualize_data.py` draws the samples of a training, of every kind of record."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.cli.visualize_data import SHEET, main, training_samples
from grounding_dino.model_zoo import load_cfg
from grounding_dino.visualization import color_of

import numpy as np
import pytest
from PIL import Image

BOX = (60, 40, 120, 100)  # XYXY
SIZE = ("INPUT.MIN_SIZE_TRAIN", "(480,)", "INPUT.MAX_SIZE_TRAIN", "480", "INPUT.RANDOM_FLIP", "none")


pytestmark = pytest.mark.usefixtures("tools_leave_no_trace")


@pytest.fixture
def annotations(tmp_path: Path) -> Callable[[str], str]:
    """`annotations(kind)`: "file:folder" of two pictures, 240 x 240, each with one object, in one of the formats."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in "ab":
        Image.new("RGB", (240, 240), (40, 40, 40)).save(folder / f"{name}.png")
    x0, y0, x1, y1 = BOX
    xywh = [x0, y0, x1 - x0, y1 - y0]
    images = [{"id": i, "file_name": f"{n}.png", "height": 240, "width": 240} for i, n in enumerate("ab", 1)]
    boxes = [{"id": i, "image_id": i, "category_id": 7, "bbox": xywh, "area": 3600, "iscrowd": 0} for i in (1, 2)]
    caption = "a grey box on the left"
    spans = [[2, 10]]
    grounding = {"caption": caption, "regions": [{"bbox": list(BOX), "phrase": "grey box", "tokens_positive": spans}]}
    rows = [{"filename": f"{n}.png", "height": 240, "width": 240} for n in "ab"]
    mdetr = [{**image, "caption": caption} for image in images]
    marked = [{**box, "category_id": 1, "tokens_positive": spans} for box in boxes]
    expressions = [{"id": i, "image_id": i, "caption": "the grey box", "bbox": xywh} for i in (1, 2)]
    instances = [{"bbox": list(BOX), "label": 0, "category": "grey box"}]
    contents: dict[str, Any] = {
        "coco": {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "grey box"}]},
        "odvg detection": [{**row, "detection": {"instances": instances}} for row in rows],
        "odvg grounding": [{**row, "grounding": grounding} for row in rows],
        "mdetr": {"images": mdetr, "annotations": marked, "categories": [{"id": 1, "name": "object"}]},
        "refexp": {"images": images, "annotations": [], "categories": [], "expressions": expressions},
    }

    def write(kind: str) -> str:
        content = contents[kind]
        path = tmp_path / ("rows.jsonl" if isinstance(content, list) else "annotations.json")
        lines = content if isinstance(content, list) else [content]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return f"{path}:{folder}"

    return write


@pytest.mark.parametrize("kind", ["coco", "odvg detection", "odvg grounding", "mdetr", "refexp"])
def test_each_kind_of_record_is_drawn_with_its_boxes_and_words(
    annotations: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    output = tmp_path / "drawn"
    arguments = ["--num", "2", "--output", str(output), "--dataset", f"grey={annotations(kind)}", *SIZE]
    assert main(arguments) == 0
    assert "pictures of grey: 2" in capsys.readouterr().out
    assert sorted(path.suffix for path in output.iterdir()) == [".png"] * 3 and (output / SHEET).is_file()
    for path in sorted(output.glob("00*.png")):
        drawn = np.asarray(Image.open(path)).astype(int)
        assert drawn.shape[1] == 480 and drawn.shape[0] > 480
        colored = np.abs(drawn - np.rint(color_of(0) * 255)).max(axis=-1) <= 1
        y, x = np.nonzero(colored[100:480])  # below the label on the box
        assert [x.min(), x.max(), y.max() + 100] == pytest.approx([2 * BOX[0], 2 * BOX[2], 2 * BOX[3]], abs=4)
        assert colored[480:].sum() > 100, "the words of the prompt have the colour of the box"


def test_what_is_drawn_is_what_is_trained_on_and_follows_from_the_seed(
    annotations: Callable[[str], str], tmp_path: Path
) -> None:
    data = f"grey={annotations('coco')}"

    def drawn(seed: str, name: str) -> list[str]:
        opts = ("SEED", seed, "INPUT.COLOR_JITTER.PROBABILITY", "1.0")
        main(["--num", "4", "--output", str(tmp_path / name), "--dataset", data, *opts])
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((tmp_path / name).iterdir())]

    first = drawn("3", "one")
    assert first == drawn("3", "two") and first != drawn("4", "three")


def test_large_batches_have_the_same_samples(annotations: Callable[[str], str]) -> None:
    opts = ["DATASETS.EXTRA", [f"grey={annotations('coco')}"], "DATASETS.TRAIN", ("grey",), "SEED", 1]
    pictures = []
    for size in (1, 2):
        cfg = load_cfg("shapes_tiny", [*opts, "SOLVER.IMS_PER_BATCH", size])
        pictures.append([sample["image"].sum().item() for sample in itertools.islice(training_samples(cfg), 4)])
    assert pictures[0] == pictures[1]


def test_data_sets_of_the_configuration_and_of_the_command_line(
    annotations: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--dataset", f"grey={annotations('coco')}"]
    tail = ["--num", "1", "--output", str(tmp_path / "out")]
    main([*data, "--dataset", f"other={annotations('coco')}", *tail, "DATASETS.TRAIN", "('grey',)"])
    assert "pictures of grey: 1" in capsys.readouterr().out
    main(["--dataset", "grey", *tail])  # it is known now
    assert "pictures of grey: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "nowhere"], "there is no data set 'nowhere'"),
        (["--dataset", "cells=a.json"], "cannot tell annotations from picture folder"),
        (["--num", "0"], "0 is not a positive number"),
        (["--config-file", "shape_tiny"], "there is no configuration 'shape_tiny'"),
        (["INPUT.MIN_SIZ", "3"], "there is no configuration key 'INPUT.MIN_SIZ'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2 and sentence in capsys.readouterr().err
