"""What a run is evaluated on: retained sets, the metric that decides, early stop, and the record of all of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.cli.train import build_parser, evaluate
from grounding_dino.engine.early_stop import evaluations_without_gain
from grounding_dino.engine.evaluations import EvaluationRecord
from grounding_dino.engine.retained import comparison_table
from grounding_dino.engine.trainer import Trainer
from grounding_dino.evaluation.build import EVALUATORS, TASKS

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator

ConfigBuilder = Callable[..., CfgNode]
Stop = Callable[[int, CfgNode], Trainer]


class Scores(DatasetEvaluator):
    """Gives the next score of its data set, whatever the model says."""

    def __init__(self, left: list[float]) -> None:
        self.left = left

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {"bbox": {"AP": self.left.pop(0), "AP-red": 0.0}}


@pytest.fixture
def with_scores(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, list[float]]]:
    """`with_scores(squares=[...], ...)`: what evaluations of each data set will give."""

    def set_scores(**scores: list[float]) -> dict[str, list[float]]:
        left = {name: list(values) for name, values in scores.items()}
        monkeypatch.setitem(EVALUATORS, "coco", lambda cfg, name, folder: Scores(left[name]))
        return left

    return set_scores


@pytest.fixture
def cfg_of(train_cfg: ConfigBuilder, coco_folder: Path) -> ConfigBuilder:
    """`train_cfg` evaluated on `squares` at each of three iterations, with a second data set `kept`."""

    def build(*opts: Any, output: str = "run") -> CfgNode:
        cfg = train_cfg("DATASETS.TEST", ("squares",), "TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 3, output=output)
        cfg.DATASETS.EXTRA = [*cfg.DATASETS.EXTRA, f"kept={coco_folder / 'boxes.json'}:{coco_folder}"]
        cfg.merge_from_list(list(opts))
        return cfg

    return build


def run(cfg: CfgNode, resume: bool = False) -> tuple[Trainer, Any]:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    return trainer, trainer.train()


def record_of(cfg: CfgNode) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "evaluations.jsonl").read_text().splitlines()]


RETAINED = ("TEST.RETAINED", ("kept",))


# ------------------------------------------------------------------------------------------------------ retained sets


def test_target_and_retained_side_by_side(
    cfg_of: ConfigBuilder, with_scores: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    left = with_scores(squares=[10.0, 20.0, 30.0, 40.5], kept=[80.0, 70.0, 65.0, 60.0])
    cfg = cfg_of(*RETAINED)
    with caplog.at_level(logging.INFO):
        trainer, results = run(cfg)
    assert left == {"squares": [], "kept": []}
    assert results == {"bbox": {"AP": 40.5, "AP-red": 0.0}}
    table = [message for message in caplog.messages if message.startswith("evaluation:")]
    assert len(table) == 4, "before training, and at each of three evaluations"
    assert [line.split() for line in table[-1].splitlines()[1:]] == [
        ["data", "set", "metric", "before", "now", "change"],
        ["squares", "bbox", "AP", "10.00", "40.50", "+30.50"],
        ["kept", "(retained)", "bbox", "AP", "80.00", "60.00", "-20.00"],
    ]
    values = [value for value, _ in trainer.storage.history("retained/kept/bbox/AP").values()]
    assert values == [80.0, 70.0, 65.0, 60.0]
    written = [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]
    assert written[-1]["retained/kept/bbox/AP"] == 60.0
    assert [(row["steps"], row["bbox/AP"], row["retained/kept/bbox/AP"]) for row in record_of(cfg)] == [
        (0, 10.0, 80.0),
        (1, 20.0, 70.0),
        (2, 30.0, 65.0),
        (3, 40.5, 60.0),
    ]


def test_a_run_that_goes_on_keeps_what_was_before_training(
    cfg_of: ConfigBuilder, with_scores: Callable[..., Any], caplog: pytest.LogCaptureFixture, stopped_before: Stop
) -> None:
    with_scores(squares=[10.0, 20.0, 30.0, 35.0, 40.0], kept=[80.0, 70.0, 65.0, 62.0, 60.0])
    opts = (*RETAINED, "SOLVER.CHECKPOINT_PERIOD", 1)
    with caplog.at_level(logging.INFO):
        stopped_before(2, cfg_of(*opts))
        run(cfg_of(*opts), True)
    assert [row["steps"] for row in record_of(cfg_of())] == [0, 1, 2, 3]
    assert any("35.00  +25.00" in message and "62.00  -18.00" in message for message in caplog.messages)
    with_scores(squares=[1.0] * 4, kept=[2.0] * 4)
    run(cfg_of(*opts))
    assert [row["bbox/AP"] for row in record_of(cfg_of())] == [1.0] * 4, "a new run has a record of its own"


def test_without_retained_sets_nothing_is_evaluated_before_training(
    cfg_of: ConfigBuilder, with_scores: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    left = with_scores(squares=[1.0, 2.0, 3.0])
    with caplog.at_level(logging.INFO):
        run(cfg_of())
    assert left == {"squares": []}
    assert not [message for message in caplog.messages if message.startswith("evaluation:")]


def test_the_protocol_names_the_weights_of_each_evaluation(
    cfg_of: ConfigBuilder, with_scores: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with_scores(squares=[1.0] * 6, kept=[1.0] * 6)
    cfg = cfg_of(*RETAINED, "SOLVER.EMA.ENABLED_ON", True, "SOLVER.MAX_ITER", 2)
    with caplog.at_level(logging.INFO):
        run(cfg)
        folder, options = cfg.OUTPUT_DIR, ("SOLVER.EMA.ENABLED_ON", True, "MODEL.LORA.WEIGHTS", "")
        with_scores(squares=[1.0])
        arguments = build_parser().parse_args(["--config-file", "swin_t_ogc", "--eval-only"])
        evaluate(cfg_of(*options, "MODEL.WEIGHTS", f"{folder}/model_final.pth"), arguments)
    said = [message.splitlines() for message in caplog.messages if message.startswith("protocol of")]
    weights = [line.split(maxsplit=1)[1] for lines in said for line in lines if line.split()[0] == "weights"]
    steps = ["0 steps", "0 steps, averaged", "1 step", "1 step, averaged", "2 steps", "2 steps, averaged"]
    in_training = [f"of this training after {text}" for text in steps for _ in ("squares", "kept")]
    assert weights == [*in_training, f"{folder}/model_final.pth, averaged"]


def test_averaged_weights_are_held_against_the_same_start(
    cfg_of: ConfigBuilder, with_scores: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with_scores(squares=[10.0, 11.0, 20.0, 21.0], kept=[80.0, 79.0, 70.0, 75.0])
    with caplog.at_level(logging.INFO):
        run(cfg_of(*RETAINED, "SOLVER.EMA.ENABLED_ON", True, "SOLVER.MAX_ITER", 1))
    lines = [line.split() for line in caplog.text.splitlines() if "averaged weights" in line and "(retained)" in line]
    assert lines[-1] == "kept (retained), averaged weights bbox AP 80.00 75.00 -5.00".split()


def test_evaluation_alone_takes_retained_sets_too(
    cfg_of: ConfigBuilder, with_scores: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    run(cfg_of("DATASETS.TEST", (), "SOLVER.MAX_ITER", 1))
    with_scores(squares=[10.0], kept=[80.0])
    cfg = cfg_of(*RETAINED, "MODEL.WEIGHTS", f"{cfg_of().OUTPUT_DIR}/model_final.pth")
    with caplog.at_level(logging.INFO):
        results = evaluate(cfg, build_parser().parse_args(["--config-file", "swin_t_ogc", "--eval-only"]))
    assert results == {"bbox": {"AP": 10.0, "AP-red": 0.0}}
    table = next(message for message in caplog.messages if message.startswith("evaluation:"))
    assert (
        table.split() == "evaluation: data set metric now squares bbox AP 10.00 kept (retained) bbox AP 80.00".split()
    )


def test_retained_sets_that_are_missing_are_refused_at_the_start(cfg_of: ConfigBuilder) -> None:
    with pytest.raises(ValueError, match=r"'gone' of TEST.RETAINED cannot be evaluated on.*TEST.RETAINED \"\(\)\""):
        Trainer(cfg_of("TEST.RETAINED", ("gone",)))


def test_a_table_of_several_targets_and_retained_sets(tiny_cfg: CfgNode) -> None:
    tiny_cfg.DATASETS.TEST, tiny_cfg.TEST.RETAINED = ("a", "b"), ("c", "d")
    before = {"a/bbox/AP": 1.0, "a/bbox/APl": float("nan"), "retained/c/refexp/P@1": 5.0}
    now = {
        "a/bbox/AP": 2.0,
        "a/bbox/APl": float("nan"),
        "b/bbox/AP": 3.0,
        "b/bbox/AP-cat": 3.0,
        "retained/c/refexp/P@1": 4.0,
    }
    assert [line.split() for line in comparison_table(tiny_cfg, before, now).splitlines()[1:]] == [
        ["a", "bbox", "AP", "1.00", "2.00", "+1.00"],
        ["a", "bbox", "APl", "nan", "nan"],
        ["b", "bbox", "AP", "3.00"],
        ["c", "(retained)", "refexp", "P@1", "5.00", "4.00", "-1.00"],
    ]


# --------------------------------------------------------------------------------------------------- metrics by name


def test_a_metric_that_an_evaluator_of_ones_own_does_not_give_stops_the_first_evaluation(
    cfg_of: ConfigBuilder, with_scores: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(TASKS, "coco")
    left = with_scores(squares=[1.0, 2.0, 3.0])
    message = r"is 'bbox/Ap', which the evaluation does not give; did you mean bbox/AP.*there are bbox/AP and 1 more"
    with pytest.raises(ValueError, match=message):
        run(cfg_of("SOLVER.BEST_CHECKPOINT_METRIC", "bbox/Ap"))
    assert left == {"squares": [2.0, 3.0]}
    with_scores(squares=[1.0], kept=[1.0])
    trainer = Trainer(cfg_of(*RETAINED, "SOLVER.BEST_CHECKPOINT_METRIC", "box/AP"))
    with pytest.raises(ValueError, match="box/AP"):
        trainer.train()
    assert trainer.iter == 0 and not trainer.optimizer.state, "with retained sets that is before the first step"


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SOLVER.BEST_CHECKPOINT_METRIC", "ema/bbox/AP"), "no averaged weights: set SOLVER.EMA.ENABLED_ON True"),
        (("SOLVER.BEST_CHECKPOINT_METRIC", "retained/kept/bbox/AP"), r"TEST.RETAINED, which is \[\]"),
        ((*RETAINED, "SOLVER.BEST_CHECKPOINT_METRIC", "retained/bbox/AP"), r"TEST.RETAINED, which is \['kept'\]"),
        (("SOLVER.BEST_CHECKPOINT_METRIC", "bbox/APP"), "not give; did you mean bbox/AP or .* there are bbox/AP,"),
        ((*RETAINED, "SOLVER.BEST_CHECKPOINT_METRIC", "retained/kept/box/AP"), "did you mean retained/kept/bbox/AP "),
        (("SOLVER.EMA.ENABLED_ON", True, "SOLVER.BEST_CHECKPOINT_METRIC", "ema/segm/AP"), "mean ema/bbox/AP "),
        (("SOLVER.BEST_CHECKPOINT_METRIC", "bbox/AP", "DATASETS.TEST", ()), "DATASETS.TEST names no data set"),
        (("SOLVER.EARLY_STOP.PATIENCE", 1), "PATIENCE needs a metric to go by: set SOLVER.BEST_CHECKPOINT_METRIC"),
        (("SOLVER.EARLY_STOP.PATIENCE", -1), "PATIENCE -1 and MIN_GAIN 0.0; neither may be negative"),
    ],
)
def test_metrics_that_cannot_come_about_are_refused_at_the_start(
    cfg_of: ConfigBuilder, opts: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(cfg_of(*opts))


def test_the_best_checkpoint_can_go_by_a_retained_set(cfg_of: ConfigBuilder, with_scores: Callable[..., Any]) -> None:
    with_scores(squares=[1.0] * 4, kept=[9.0, 5.0, 7.0, 6.0])
    cfg = cfg_of(*RETAINED, "SOLVER.BEST_CHECKPOINT_METRIC", "retained/kept/bbox/AP")
    run(cfg)
    best = torch.load(f"{cfg.OUTPUT_DIR}/model_best.pth", weights_only=True)
    assert (best["best_value"], best["iteration"]) == (7.0, 1)


def test_what_another_run_left_in_the_folder_is_none_of_a_run_interrupted_before_its_first_evaluation(
    cfg_of: ConfigBuilder, with_scores: Callable[..., Any], stopped_before: Stop
) -> None:
    with_scores(squares=[9.0, 8.0, 7.0])
    best = ("SOLVER.BEST_CHECKPOINT_METRIC", "bbox/AP", "SOLVER.CHECKPOINT_PERIOD", 1)
    run(cfg_of(*best, "SOLVER.MAX_ITER", 3))
    cfg = cfg_of(*best, "TEST.EVAL_PERIOD", 6, "SOLVER.MAX_ITER", 6)
    stopped_before(3, cfg)
    with_scores(squares=[5.0])
    resumed, _ = run(cfg, True)
    assert resumed.start_iter == 3 and resumed.record.values("bbox/AP") == [5.0]
    assert torch.load(f"{cfg.OUTPUT_DIR}/model_best.pth", weights_only=True)["best_value"] == 5.0


# -------------------------------------------------------------------------------------------------------- early stop

STOP = ("SOLVER.BEST_CHECKPOINT_METRIC", "bbox/AP", "SOLVER.EARLY_STOP.PATIENCE", 2, "SOLVER.MAX_ITER", 9)


@pytest.mark.parametrize(
    ("values", "min_gain", "waited"),
    [
        ([], 0.0, 0),
        ([1.0, 2.0], 0.0, 0),
        ([2.0, 2.0, 1.0], 0.0, 2),
        ([1.0, 1.5, 1.9], 1.0, 2),
        ([1.0, float("nan")], 0, 1),
    ],
)
def test_waiting_is_counted_from_the_best(values: list[float], min_gain: float, waited: int) -> None:
    assert evaluations_without_gain(values, min_gain) == waited


def test_training_ends_when_the_metric_stops_growing(
    cfg_of: ConfigBuilder, with_scores: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    left = with_scores(squares=[1.0, 3.0, 2.0, 2.5, 9.0])
    cfg = cfg_of(*STOP)
    with caplog.at_level(logging.INFO):
        trainer, results = run(cfg)
    assert (trainer.iter, left["squares"]) == (3, [9.0]), "no step and no evaluation after the fourth"
    assert results["bbox"]["AP"] == 2.5
    assert "bbox/AP has not grown in 2 evaluations: training ends after 4 of 9 iterations" in caplog.text
    assert "Traceback" not in caplog.text
    final = torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth", weights_only=True)
    assert final["iteration"] == 3
    assert all(torch.equal(tensor, final["model"][name]) for name, tensor in trainer.model.state_dict().items())
    written = [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]
    assert written[-1]["bbox/AP"] == 2.5, "writers have had their say"


def test_an_interruption_does_not_change_when_training_ends(
    cfg_of: ConfigBuilder, with_scores: Callable[..., Any], stopped_before: Stop
) -> None:
    left = with_scores(squares=[1.0, 3.0, 2.0, 2.5, 9.0])
    opts = (*STOP, "SOLVER.CHECKPOINT_PERIOD", 1)
    stopped_before(3, cfg_of(*opts))
    trainer, _ = run(cfg_of(*opts), True)
    assert (trainer.start_iter, trainer.iter, left["squares"]) == (3, 3, [9.0])


def test_a_run_that_had_ended_goes_on_with_more_patience_only(
    cfg_of: ConfigBuilder, with_scores: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    left = with_scores(squares=[3.0, 2.0, 1.0, 4.0, 1.0, 1.0, 1.0])
    run(cfg_of(*STOP))
    with caplog.at_level(logging.INFO):
        trainer, results = run(cfg_of(*STOP), True)
    assert results is None and len(left["squares"]) == 4
    assert "raise SOLVER.EARLY_STOP.PATIENCE to go on" in caplog.text
    trainer, _ = run(cfg_of(*STOP, "SOLVER.EARLY_STOP.PATIENCE", 3), True)
    assert (trainer.start_iter, trainer.iter, left["squares"]) == (3, 6, [])


def test_min_gain_is_what_counts_as_better(cfg_of: ConfigBuilder, with_scores: Callable[..., Any]) -> None:
    left = with_scores(squares=[1.0, 1.4, 1.5, 9.0])
    run(cfg_of(*STOP, "SOLVER.EARLY_STOP.MIN_GAIN", 0.5))
    assert left["squares"] == [9.0]


def test_a_record_is_of_one_run_and_of_steps_that_were_done(tmp_path: Path) -> None:
    record = EvaluationRecord(str(tmp_path / "new" / "folder"))
    record.go_on_from(5)
    for steps in (0, 2, 4):
        record.add(steps, {"AP": float(steps)})
    again = EvaluationRecord(str(tmp_path / "new" / "folder"))
    again.go_on_from(3)
    assert again.values("AP") == [2.0] and again.before == {"AP": 0.0}
    again.add(2, {"AP": 7.0})
    assert again.values("AP") == [7.0]
    again.go_on_from(0)
    assert again.values("AP") == [] and again.before == {}
