"""`tools/check_data.py`: tables, json and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.cli.check_data import main

import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

pytestmark = pytest.mark.usefixtures("tools_leave_no_trace")


@pytest.fixture
def check(tiny_cfg: CfgNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`check(*flags, opts=(), size=(60, 40))`: exit code, output and json of a check of five pictures of one class."""
    torch.set_num_threads(1)
    folder = tmp_path / "pictures"
    folder.mkdir()
    numbers = range(1, 6)
    for number in numbers:
        Image.new("RGB", (60, 40)).save(folder / f"{number}.png")
    box = {"category_id": 1, "bbox": [5, 5, 20, 10], "area": 200, "iscrowd": 0}
    tiny_cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 10, "INPUT.MIN_SIZE_TRAIN", (80,)])
    tiny_cfg.INPUT.MAX_SIZE_TRAIN = 160
    (tmp_path / "tiny.yaml").write_text(tiny_cfg.dump())

    def run(*flags: str, opts: tuple[str, ...] = (), width: int = 60) -> tuple[int, str, dict[str, Any]]:
        content = {
            "images": [{"id": n, "file_name": f"{n}.png", "width": width, "height": 40} for n in numbers],
            "annotations": [{**box, "id": n, "image_id": n} for n in numbers],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (tmp_path / "cats.json").write_text(json.dumps(content))
        data = ["--dataset", f"cats={tmp_path / 'cats.json'}:{folder}", "--config-file", str(tmp_path / "tiny.yaml")]
        files = ["--json", str(tmp_path / "out.json"), "--output", str(tmp_path / "drawn")]
        code = main([*data, *files, *flags, *opts])
        return code, capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())

    return run


def test_a_set_in_order_ends_with_0_and_five_drawings(check: Callable[..., Any], tmp_path: Path) -> None:
    code, output, content = check("--no-memory")
    assert code == 0 and content["ok"] and output.rstrip().endswith("no errors were found")
    assert len(list((tmp_path / "drawn" / "cats").glob("*.png"))) == 6, "and a contact sheet"
    (data,) = content["data_sets"]
    assert data["name"] == "cats" and data["facts"]["objects"] == 5 and data["findings"] == []
    assert content["test_sets"] == [], "the configuration's own are no matter of a set that is named"
    steps = content["training"]["facts"]
    assert steps == {
        "pictures an epoch": 5,
        "pictures a batch": 2,
        "iterations an epoch": "2.5",
        "iterations": 10,
        "epochs": "4.00",
    }
    lines = output.splitlines()
    table = lines[: lines.index("")]
    assert table[0].startswith("data set cats") and len({len(line) for line in table[1:]}) == 1, "columns are aligned"


def test_epochs_of_the_configuration_become_iterations(check: Callable[..., Any]) -> None:
    facts = check("--no-memory", opts=("SOLVER.EPOCHS.MAX", "4"))[2]["training"]["facts"]
    assert facts["iterations"] == 12 and facts["epochs"] == "4.80"


def test_how_the_configuration_mixes_its_own_sets_is_no_matter_of_one_that_is_named(
    check: Callable[..., Any], tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    tiny_cfg.DATASETS.RATIOS = [1, 0.5]
    tiny_cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    tiny_cfg.DATALOADER.REPEAT_SETS = ["lvis_v1_train"]
    (tmp_path / "tiny.yaml").write_text(tiny_cfg.dump())
    assert check("--no-memory")[0] == 0
    code, _, content = check("--no-memory", opts=("DATASETS.RATIOS", "[2]"))
    assert code == 0 and content["training"]["facts"]["pictures an epoch"] == 10
    code, _, content = check("--no-memory", opts=("DATASETS.RATIOS", "[]", "DATASETS.WEIGHTS", "[0]"))
    assert code == 1 and "DATASETS.WEIGHTS [0.0] draws nothing" in content["training"]["findings"][0]["example"]


def test_errors_end_with_1(check: Callable[..., Any]) -> None:
    code, output, content = check("--no-memory", width=61)
    assert code == 1 and not content["ok"]
    (finding,) = content["data_sets"][0]["findings"]
    assert finding["severity"] == "error" and finding["count"] == 5
    assert "error: pictures of another size than annotated" in output


def test_a_training_that_would_not_start_is_an_error(check: Callable[..., Any]) -> None:
    code, output, _ = check("--no-memory", opts=("DATALOADER.SAMPLER_TRAIN", "Sampler"))
    assert code == 1 and "error: the training cannot start: unknown DATALOADER.SAMPLER_TRAIN 'Sampler'" in output


def test_classes_that_a_closed_set_model_takes_from_the_data_are_counted(check: Callable[..., Any]) -> None:
    without_text = ("MODEL.TEXT_ENCODER.NAME", "", "MODEL.CLASS_HEAD.NAME", "Linear", "INPUT.MAPPER", "InstanceMapper")
    code, _, found = check("--no-memory", opts=(*without_text, "MODEL.DENOISING.NUM_LABELS", "0"))
    assert code == 0 and found["training"]["facts"]["iterations"] == 10


def test_a_set_that_cannot_be_loaded_is_an_error(check: Callable[..., Any]) -> None:
    code, output, content = check("--dataset", "nowhere", "--no-memory")
    assert code == 1 and "there is no data set 'nowhere'" in output
    assert [part["name"] for part in content["data_sets"]] == ["cats", "nowhere"]


def test_sets_of_evaluation_are_checked_where_they_are_named(check: Callable[..., Any], tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    region = {"bbox": [1, 1, 9, 9], "phrase": "a cat"}
    row = {"filename": "1.png", "width": 60, "height": 40, "grounding": {"caption": "a cat", "regions": [region]}}
    (rows / "a.jsonl").write_text(json.dumps(row) + "\n")
    (rows / "b.jsonl").write_text(json.dumps({**row, "width": 61}) + "\n")
    extra = f"disk={rows}/*.jsonl:{tmp_path / 'pictures'}"
    opts = ("DATASETS.EXTRA", f"['{extra}']", "DATASETS.TEST", "('cats', 'disk')", "TEST.RETAINED", "('nowhere',)")
    code, output, content = check("--no-memory", opts=opts)
    assert code == 1 and "test set disk" in output
    tests = {part["name"]: part for part in content["test_sets"]}
    assert [*tests] == ["cats", "disk", "nowhere"] and tests["cats"]["findings"] == []
    assert {found["what"].split(" (")[0] for found in tests["disk"]["findings"]} == {
        "pictures of another size than annotated",
        "the data set cannot be evaluated on",
    }
    assert "cannot be loaded" in tests["nowhere"]["findings"][0]["what"]
    assert content["data_sets"][0]["findings"] == [] and content["training"]["findings"] == []


@pytest.mark.parametrize("measure", [True, False])
def test_the_memory_of_a_step(check: Callable[..., Any], measure: bool) -> None:
    code, output, content = check(*["--measure"] * measure)
    numbers = content["training"]["numbers"]
    assert code == 0
    assert (numbers["picture"], numbers["pictures"], numbers["objects"]) == ([80, 120], 2, 1)
    assert (numbers["peak"] is not None) == measure
    assert ("one step was run" if measure else "activations of one picture measured") in output
    parts = ("weights", "gradients", "optimizer", "average", "activations")
    assert numbers["total"] == sum(numbers[name] for name in parts) > 10**7


def test_processes_share_the_batch(check: Callable[..., Any]) -> None:
    one, two = (check("--num-gpus", count)[2]["training"]["numbers"] for count in ("1", "2"))
    assert (one["pictures"], two["pictures"]) == (2, 1) and two["activations"] < one["activations"]
    code, output, _ = check("--num-gpus", "3")
    assert code == 1 and "SOLVER.IMS_PER_BATCH 2 cannot be split into 3 parts" in output


def test_every_picture_is_decoded_where_asked_for(check: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    from grounding_dino.data import check as check_module

    def recording(cfg: CfgNode, name: str, num_pictures: int | None = 200) -> Any:
        seen.append(num_pictures)
        return original(cfg, name, num_pictures)

    original = check_module.check_dataset
    monkeypatch.setattr(check_module, "check_dataset", recording)
    check("--no-memory"), check("--no-memory", "--all")
    assert seen == [200, None]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config-file", "shape_tiny"], "there is no configuration 'shape_tiny'"),
        (["DATASETS.TRAIN", "()"], "there is no data set to check"),
        (["--dataset", "x=y"], "cannot tell annotations from picture folder"),
        (["--measure", "--no-memory"], "not allowed with argument"),
    ],
)
def test_arguments_that_make_no_sense_end_with_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2 and sentence in capsys.readouterr().err
