"""Models beside transformers' in one benchmark: the sides themselves, their processes, and the table."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grounding_dino.analysis.ceiling import matmul_rate
from grounding_dino.analysis.part_times import PartClock
from grounding_dino.cli import benchmark
from grounding_dino.cli.benchmark_inference import SIDES, Plan, _relate, measure_model
from grounding_dino.cli.benchmark_inputs import CONFIG_FILE, first_names, inputs_of, names_of, pictures_of, prompts_of
from grounding_dino.cli.benchmark_preparation import Preparation
from grounding_dino.cli.benchmark_report import AGREEMENT, report, training_report
from grounding_dino.cli.benchmark_sides import Ceiling, Ours, Transformers
from grounding_dino.cli.benchmark_training import measure_against
from grounding_dino.cli.benchmark_training_sides import OurTraining, TransformersTraining
from grounding_dino.cli.benchmark_workers import Worker, WorkerError, run_in_turn, serve
from grounding_dino.model_zoo import load_cfg

import pytest
import torch
from detectron2.config import CfgNode

# What transformers has in relation to other numbers, and no shape of a weight tells.
LIKE_TRANSFORMERS = [
    *("MODEL.PIXEL_DECODER.TEXT_FUSION.EMBED_DIM", 16, "MODEL.PIXEL_DECODER.TEXT_LAYER.FFN_DIM", 16),
    *("MODEL.PIXEL_DECODER.TEXT_FUSION.NUM_HEADS", 1, "MODEL.PIXEL_DECODER.TEXT_LAYER.NUM_HEADS", 1),
    *("MODEL.CLASS_HEAD.SCALE", "none", "MODEL.CLASS_HEAD.BIAS_ON", False),
]
SIZE = (64, 96)


@pytest.fixture
def threads() -> Iterator[None]:
    """One is enough for tiny models."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_file(tiny_cfg: CfgNode, tmp_path: Path, threads: None) -> str:
    tiny_cfg.merge_from_list(LIKE_TRANSFORMERS)
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny_cfg.dump())
    return str(file)


@pytest.fixture
def folder(tiny_file: str, tmp_path: Path) -> str:
    """What the sides read, of a prompt of five names."""
    preparation = Preparation(tiny_file, [], str(tmp_path), SIZE, 5)
    assert preparation.prepare() == {"prompts": 1, "obstacle": ""}
    return str(tmp_path)


def test_both_sides_compute_the_same(folder: str, tmp_path: Path) -> None:
    ours, theirs = (side(folder, SIZE, 2, 5, "fp32") for side in (Ours, Transformers))
    theirs.write_outputs(str(tmp_path / "outputs.pt"))
    difference = ours.compare(str(tmp_path / "outputs.pt"))
    assert difference["logits"] < 1e-4 * difference["logits_range"] and difference["boxes"] < 1e-5
    assert ours.run() > 0 and theirs.run() > 0
    for side in (ours, theirs):
        assert side.memory()["process"] >= side.memory()["loading"] > 0
        found = side.parts()
        assert {"backbone", "input projection", "text encoder", "encoder", "query selection", "decoder"} <= set(found)
        assert all(seconds >= 0 for seconds in found.values())


def test_text_is_kept_only_where_asked(folder: str) -> None:
    kept, forgotten = (Ours(folder, SIZE, 1, 5, "fp32", text_kept=kept) for kept in (True, False))
    calls = []
    for side in (kept, forgotten):
        side.model.text_encoder.bert.register_forward_hook(lambda *_, side=side: calls.append(side))
        side.run()
        side.run()
    assert calls == [forgotten, forgotten]


def test_lower_precision_is_autocast(folder: str) -> None:
    side = Ours(folder, SIZE, 1, 1, "bf16")
    found = []
    side.model.pixel_decoder.layers[0].image_layer.ffn[0].register_forward_hook(lambda _, __, out: found.append(out))
    side.run()
    assert next(side.model.parameters()).dtype == torch.float32
    assert all(output.dtype == torch.bfloat16 for output in found)


@pytest.mark.slow
def test_operations_of_both(tiny_file: str, tmp_path: Path) -> None:
    preparation = Preparation(tiny_file, [], str(tmp_path), SIZE, 5)
    preparation.prepare()
    flops = preparation.count(compared=True)
    assert sum(flops["parts"].values()) == flops["ours"]
    assert 0.5 < flops["ours"] / flops["transformers"] < 2


def test_the_counted_model_is_not_compiled_and_the_measured_one_is(tiny_file: str, tmp_path: Path) -> None:
    preparation = Preparation(tiny_file, ["TEST.COMPILE_ON", True], str(tmp_path), SIZE, 1)
    preparation.prepare()
    assert preparation.model.backbone._compiled_call_impl is None
    assert load_cfg(tmp_path / CONFIG_FILE).TEST.COMPILE_ON


def test_training_steps_of_both(folder: str) -> None:
    ours = OurTraining(folder, SIZE, 2, 5, "fp32", denoising=False)
    theirs = TransformersTraining(folder, SIZE, 2, 5, "fp32")
    for side in (ours, theirs):
        before = {name: value.clone() for name, value in side.model.named_parameters()}
        assert side.run() > 0
        changed = [name for name, value in side.model.named_parameters() if not torch.equal(value, before[name])]
        assert len(changed) > len(before) / 2
    # the word embeddings of padding and the like differ by a few names
    assert ours.facts()["trainable"] == pytest.approx(theirs.facts()["trainable"], rel=0.02)


@pytest.mark.parametrize("fixture", ["tiny_glip_cfg", "tiny_mask_cfg"])
def test_models_of_other_families_are_measured_alone(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path, threads: None
) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(request.getfixturevalue(fixture).dump())
    facts = Preparation(str(file), [], str(tmp_path), SIZE, 1).prepare()
    assert "no such model" in facts["obstacle"]
    assert facts["prompts"] == (1 if fixture == "tiny_glip_cfg" else 0)
    side = Ours(str(tmp_path), SIZE, 1, 1, "fp32")
    assert side.run() > 0
    assert "backbone" in side.parts()


def test_names() -> None:
    assert names_of(1) == ["cat"]
    for count in (2, 80, 1203):
        assert len(set(names_of(count))) == count
    assert "person" in names_of(80) and "zebra" in names_of(80)
    with pytest.raises(ValueError, match="--categories 5000: there are 1280 names at most"):
        names_of(5000)


def test_inputs(tiny_cfg: CfgNode) -> None:
    images = pictures_of((8, 12), 2)
    assert [image.shape for image in images] == [(3, 8, 12)] * 2 and images[0].dtype == torch.uint8
    assert not torch.equal(*images) and torch.equal(images[0], pictures_of((8, 12), 1)[0])
    names = names_of(1203)
    assert len(prompts_of(tiny_cfg, names)) > 10
    first = first_names(tiny_cfg, names)
    assert len(prompts_of(tiny_cfg, first)) == 1 and first == names[: len(first)]
    assert inputs_of(tiny_cfg, (8, 12), 1, ["cat"])[0]["categories"] == ["cat"]


def test_the_clock_gives_every_moment_to_one_part(tiny_model: torch.nn.Module) -> None:
    inputs = [{"image": image, "height": 64, "width": 96, "categories": ["cat"]} for image in pictures_of(SIZE, 1)]
    with torch.no_grad(), PartClock(tiny_model) as clock:
        tiny_model(inputs)
    assert set(clock.seconds) == {
        *("preprocessing", "backbone", "input projection", "text encoder", "encoder", "query selection"),
        *("decoder", "heads and masks", "postprocessing"),
    }
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_model.modules())


def test_ceiling() -> None:
    assert matmul_rate(torch.float32, size=16) > 0
    assert set(Ceiling([], "cpu").run()) == set()


def test_a_side_answers_errors_and_goes_on() -> None:
    asked = [
        {"role": "ceiling", "settings": {"dtypes": [], "device": "cpu"}},
        {"method": "run", "arguments": {}},
        {"method": "__init__", "arguments": {}},
        {"method": "run", "arguments": {"n": 1}},
        {"method": "run", "arguments": {}},
    ]
    answers = io.StringIO()
    serve([json.dumps(request) for request in asked], answers)
    lines = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert lines[0] == {"result": None} and lines[1] == lines[4] == {"result": {}}
    assert "no method '__init__'" in lines[2]["error"] and "TypeError" in lines[3]["error"]


def test_a_side_that_cannot_be_built_is_the_last_answer() -> None:
    answers = io.StringIO()
    serve([json.dumps({"role": "ceiling", "settings": {"speed": 1}}), "never read"], answers)
    assert "TypeError" in json.loads(answers.getvalue())["error"]


@pytest.mark.slow
def test_a_process_has_an_allocator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    with Worker("ceiling", {"dtypes": ["fp32"], "device": "cpu"}, {"OMP_NUM_THREADS": "1"}) as worker:
        environment = Path(f"/proc/{worker._process.pid}/environ")
        if environment.exists():
            assert b"MALLOC_TOP_PAD_" not in environment.read_bytes()
        assert worker.call("run")["fp32"] > 0
    with pytest.raises(WorkerError, match="TypeError"):
        Worker("ceiling", {"speed": 1})


@pytest.mark.slow
def test_one_command_measures_both(tiny_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "times.json"
    arguments = ["--config-file", tiny_file, "--size", "64x96", "--dtype", "fp32", "--repeats", "1", "--parts"]
    assert benchmark.main([*arguments, "--sides", "ours", "tuned", "transformers", "--json", str(file)]) == 0
    printed, record = capsys.readouterr().out, json.loads(file.read_text())["models"][0]
    assert [row["side"] for row in record["rows"]] == ["ours", "tuned", "transformers"]
    assert record["difference"]["logits"] < AGREEMENT * record["difference"]["logits_range"]
    for words in ("the same numbers", "transformers, allocator tuned, fp32", "parts of ours", "of ceiling"):
        assert words in printed


@pytest.mark.slow
def test_several_prompts_are_compared_with_what_they_have_to_cost(tiny_file: str) -> None:
    plan = Plan(SIZE, 1, ["fp32"], "cpu", 200, ["ours"], text_kept=True, with_parts=True, repeats=1)
    record = measure_model(tiny_file, [], plan)
    assert record["prompts"] > 1 and record["chunks"]["ours fp32"]["ratio"] > 0
    assert "share_of_ceiling" not in record["rows"][0]
    assert "prompts take" in report(record)


@pytest.mark.slow
def test_training_against_transformers(tiny_file: str) -> None:
    plan = Plan(SIZE, 2, ["fp32"], "cpu", 5, ["ours", "transformers"], False, False, repeats=1)
    record = measure_against(tiny_file, [], plan)
    assert [row["side"] for row in record["rows"]] == [
        "ours, with denoising",
        "ours, without denoising",
        "transformers",
    ]
    assert "steps/s" in training_report(record)


class Runs:
    """Stands for a worker; its runs take so many seconds, or fail."""

    def __init__(self, *runs: float | str) -> None:
        self.runs = list(runs)

    def call(self, method: str) -> Any:
        if method == "memory":
            return {"process": 1}
        run = self.runs.pop(0)
        if isinstance(run, str):
            raise WorkerError(run)
        return run


def test_a_side_that_fails_in_a_round_does_not_stop_the_others() -> None:
    workers = {"a": Runs(3.0, 1.0, 2.0), "b": Runs(1.0, "killed", 1.0)}
    rounds: list[int] = []
    found = run_in_turn(workers, 3, rounds.append)  # type: ignore[type-var]
    seconds = {"median": 2.0, "lowest": 1.0, "highest": 3.0}
    assert found == {"a": {"seconds": seconds, "memory": {"process": 1}}, "b": {"error": "killed"}}
    assert rounds == [0, 1, 2] and workers["b"].runs == [1.0]


@pytest.mark.parametrize("kept, work", [(False, 100), (True, 90)])
def test_text_that_is_kept_is_no_work_of_a_run(kept: bool, work: int) -> None:
    seconds = {"median": 2.0, "lowest": 2.0, "highest": 2.0}
    record: dict[str, Any] = {"rows": [{"side": side, "dtype": "fp32", "seconds": seconds} for side in SIDES]}
    record |= {"flops": {"ours": 100, "transformers": 100, "parts": {"text encoder": 10, "encoder": 90}}}
    _relate(record | {"batch": 2, "prompts": 1, "text_kept": kept, "ceiling": {"fp32": 200.0}})
    ours, *others = record["rows"]
    assert ours["flops"] == 2 * work and ours["share_of_ceiling"] == pytest.approx(work / 200)
    assert all(row["flops"] == 200 for row in others)


def test_a_side_that_fails_has_a_row_of_its_own() -> None:
    timed = {"median": 2.0, "lowest": 1.0, "highest": 3.0}
    row: dict[str, Any] = {"side": "ours", "dtype": "fp32", "seconds": timed, "pictures_per_second": 0.5}
    row |= {"memory": {"gpu": 0, "process": 2**30}, "faster_than": {}}
    record: dict[str, Any] = {"config": "c", "size": [1, 2], "batch": 1, "prompts": 1, "categories": 1}
    record |= {"text_kept": False, "obstacle": "", "difference": None, "ceiling": {"fp32": 1e9}, "flops": None}
    record["rows"] = [row, {"side": "compiled", "dtype": "fp32", "error": "Unsupported: a graph"}]
    text = report(record)
    assert "2.000 (1.000 to 3.000)" in text and "failed: Unsupported: a graph" in text
    record["difference"] = {"logits": 1.0, "logits_range": 10.0, "boxes": 0.0}
    assert "NOT the same numbers" in report(record)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say what to measure"),
        (["--config-file", "nothing_of_this_name"], "there is no configuration"),
        (["--train", "--against", "transformers"], "--config-file as well"),
        (["--config-file", "swin_t_ogc", "--sides", "tuned"], "name 'ours' as well"),
        (["--config-file", "swin_t_ogc", "--dataset", "bccd"], "made-up pictures"),
        (["--train", "--config-file", "a", "--config-file", "b"], "one configuration at a time"),
        (["--op", "--device", "gpu"], "there is no device 'gpu'"),
        (["--op", "--batch", "2"], "--batch has no effect on --op"),
        (["--folder", "demo/pictures", "--dtype", "bf16"], "--dtype has no effect on --folder"),
        (["--train", "--config-file", "shapes_tiny", "--text-cache", "on"], "--text-cache has no effect on --train"),
        (["--config-file", "swin_t_ogc", "MODEL.DEVICE", "cuda"], "MODEL.DEVICE has no effect on models; say it with"),
        (["--config-file", "swin_t_ogc", "SEED", "1", "TEST.PRECISION", "bfloat16"], "say it with --dtype"),
        (["--startup", "SEED", "1"], "KEY VALUE pairs have no effect on --startup"),
        (["--config-file", "swin_t_ogc", "--workers", "0"], "--workers has no effect on models"),
        (["--op", "--json", "."], "--json '.' is a folder"),
        (
            ["--train", "--against", "transformers", "--config-file", "swin_t_ogc", "--sides", "ours", "compiled"],
            "--sides compiled",
        ),
    ],
)
def test_what_cannot_be_measured_is_said(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        benchmark.main(arguments)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "sides"), [("cpu", ["ours", "transformers", "tuned"]), ("cuda", ["ours", "transformers"])]
)
def test_the_allocator_is_tuned_where_it_matters(device: str, sides: list[str]) -> None:
    args = benchmark.build_parser().parse_args(["--config-file", "swin_t_ogc", "--device", device])
    assert benchmark._plan(args).sides == sides


def test_exported_sides_need_the_file_and_one_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, words in (
        (["--sides", "ours", "onnxruntime"], "give the exported file with --onnx"),
        (["--onnx", "no_such.onnx"], "name one file that exists"),
    ):
        with pytest.raises(SystemExit):
            benchmark.main(["--config-file", "shapes_tiny", *flags])
        assert words in capsys.readouterr().err
