"""Prompt tuning and linear probe of GLIP: what is trained, and nothing else; files, resuming, other options."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.checkpoint.loading import load_weights
from grounding_dino.engine.trainer import Trainer
from grounding_dino.model_zoo import build_model, load_cfg

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

ConfigBuilder = Callable[..., CfgNode]
Stop = Callable[[int, CfgNode], Trainer]
VECTORS = "prompt_vectors.weight"
LAST_LAYERS = {
    f"head.{name}.{leaf}" for name in ("text_projection", "box", "centerness") for leaf in ("weight", "bias")
}
LAST_LAYERS |= {"head.log_scale", "head.text_bias", "head.bias"}
TRAINED = {"glip_prompt_tuning": {VECTORS}, "glip_linear_probe": LAST_LAYERS}
NAMES = ["green square", "blue square", "red square"]  # as prompts of `squares` list them


@pytest.fixture
def glip_cfg(tiny_glip_opts: list[Any], tiny_opts: list[Any], tmp_path: Path, forget_data_sets: None) -> ConfigBuilder:
    """`glip_cfg("glip_prompt_tuning", *opts, output="run")`: a recipe with the tiny model, on `squares`."""
    data = tiny_opts[: tiny_opts.index("MODEL.TEXT_ENCODER.DROPOUT")]

    def build(name: str, *opts: Any, output: str = "run") -> CfgNode:
        plain = [*tiny_glip_opts, *data, "INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", (64,), "SEED", 3]
        plain += ["MODEL.DENSE_HEAD.ACTIVATION_CHECKPOINTING_ON", False]
        solver = ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.EPOCHS.MAX", 0, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (1000,)]
        none = ["SOLVER.EARLY_STOP.PATIENCE", 0, "SOLVER.BEST_CHECKPOINT_METRIC", "", "SOLVER.CHECKPOINT_PERIOD", 1000]
        return load_cfg(name, [*plain, *solver, *none, "OUTPUT_DIR", str(tmp_path / output), *opts])

    return build


@pytest.fixture
def base(glip_cfg: ConfigBuilder, tiny_glip: nn.Module, tmp_path: Path) -> str:
    """A checkpoint without prompt vectors, as released files are."""
    torch.save({"model": tiny_glip.state_dict()}, tmp_path / "base.pth")
    return str(tmp_path / "base.pth")


def trained(cfg: CfgNode, resume: bool = False) -> Trainer:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def state_of(path: str) -> dict[str, Tensor]:
    return dict(torch.load(path, weights_only=True)["model"])


def picture() -> dict[str, Any]:
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"image": image, "height": 64, "width": 96, "categories": NAMES}


def scores(model: nn.Module, *names: str) -> Tensor:
    """What the model finds by each token, over all places."""
    assert not model.training
    inputs = {**picture(), "categories": list(names) or NAMES}
    with torch.no_grad():
        found = model.predict(model.preprocess_image([inputs]), [model.text_prompts_of(inputs)])  # type: ignore[operator]
        _, _, predictions = next(found)
    return torch.cat(list(predictions.token_logits))


# ------------------------------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("recipe", TRAINED)
def test_the_loss_falls_and_all_else_stays_bit_for_bit(glip_cfg: ConfigBuilder, base: str, recipe: str) -> None:
    trainer = trained(glip_cfg(recipe, "MODEL.WEIGHTS", base, "SOLVER.MAX_ITER", 4, "SOLVER.IMS_PER_BATCH", 8))
    before, after = state_of(base), trainer.model.state_dict()
    assert {name for name in after if name not in before or not torch.equal(after[name], before[name])} == TRAINED[
        recipe
    ]
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for name, p in trainer.model.named_parameters() if name in TRAINED[recipe]}
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert losses[-1] < losses[0]
    if VECTORS in after:
        length = 3 * 3 - 1 + 2  # three names of two words with periods between them, [CLS] and [SEP]
        assert after[VECTORS].shape == (1000, 16) and after[VECTORS][:length].any(dim=1).all()
        assert not after[VECTORS][length:].any()


def test_rates_of_the_linear_probe_are_those_of_the_authors(glip_cfg: ConfigBuilder) -> None:
    trainer = Trainer(glip_cfg("glip_linear_probe"))
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        for name in (names[id(p)] for p in group["params"]):
            assert (group["initial_lr"], group["weight_decay"]) == ((2e-4, 0.0) if "bias" in name else (1e-4, 0.05)), (
                name
            )


@pytest.mark.parametrize("recipe", TRAINED)
def test_frozen_parts_draw_no_random_numbers_but_the_probed_tower(recipe: str) -> None:
    model = load_cfg(recipe).MODEL
    assert model.SWIN.DROP_PATH_RATE == 0 and model.TEXT_ENCODER.FREEZE_ON
    tower = (model.TEXT_ENCODER.DROPOUT, model.DENSE_HEAD.TEXT_FUSION.DROPOUT)
    assert tower == ((0.0, 0.0) if recipe == "glip_prompt_tuning" else (0.1, 0.1))


def test_training_and_testing_ask_with_the_same_prompt(glip_cfg: ConfigBuilder, base: str) -> None:
    trainer = Trainer(glip_cfg("glip_prompt_tuning", "MODEL.WEIGHTS", base, "DATASETS.TEST", ("squares",)))
    asked = {tuple(inputs["categories"]) for inputs in next(iter(trainer.data_loader))}
    loader = trainer.build_test_loader(trainer.cfg, "squares")
    assert asked == {tuple(inputs["categories"]) for batch in loader for inputs in batch} == {tuple(NAMES)}


@pytest.mark.parametrize(
    ("opts", "reason"),
    [
        ((), None),
        (("INPUT.SHUFFLE_CATEGORIES_ON", True), "False keeps the order of the names"),
        (("INPUT.NUM_NEGATIVE_CATEGORIES", 2), "-1 names all classes"),
        (("INPUT.SPLIT_NAMES_ON", True), "False writes a name as it is"),
        (("DATASETS.TEXT", {"squares": {"SHUFFLE_CATEGORIES_ON": True}}), "False keeps the order"),
        (("MODEL.TEXT_ENCODER.MAX_TOKENS", 9), "its 3 names do not fit into one (MODEL.TEXT_ENCODER.MAX_TOKENS is 9)"),
        (("MODEL.DENSE_HEAD.PROMPT_VECTORS", 0, "INPUT.SHUFFLE_CATEGORIES_ON", True, "SOLVER.FREEZE", []), None),
    ],
)
def test_prompts_that_change_are_warned_of(
    glip_cfg: ConfigBuilder, caplog: pytest.LogCaptureFixture, opts: tuple[Any, ...], reason: str | None
) -> None:
    Trainer(glip_cfg("glip_prompt_tuning", *opts))
    warnings = [record.message for record in caplog.records if "change from picture to picture" in record.message]
    assert (reason is None and not warnings) or (reason in warnings[0] and "'squares'" in warnings[0])


# --------------------------------------------------------------------------------------------- files, going on


def test_a_file_without_vectors_is_the_untrained_state(
    glip_cfg: ConfigBuilder, base: str, tiny_glip: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = build_model(glip_cfg("glip_prompt_tuning"), base)
    assert sum("has no prompt vectors" in record.message for record in caplog.records) == 1
    assert torch.equal(scores(model), scores(tiny_glip))
    with torch.no_grad():
        model.prompt_vectors.weight.fill_(1.0)  # type: ignore[union-attr, operator]
    load_weights(model, base)
    assert torch.equal(scores(model), scores(tiny_glip)), "also where the model had learned some"


def test_learned_vectors_are_loaded_or_the_error_says_how(glip_cfg: ConfigBuilder, base: str) -> None:
    trainer = trained(glip_cfg("glip_prompt_tuning", "MODEL.WEIGHTS", base))
    file = f"{trainer.cfg.OUTPUT_DIR}/model_final.pth"
    model = build_model(glip_cfg("glip_prompt_tuning"), file)
    assert torch.equal(scores(model), scores(trainer.model.eval()))
    assert not torch.equal(scores(model), scores(build_model(glip_cfg("glip_prompt_tuning"), base)))
    for rows in (0, 20):
        with pytest.raises(CheckpointError, match=r"set MODEL.DENSE_HEAD.PROMPT_VECTORS 1000\."):
            build_model(glip_cfg("glip_prompt_tuning", "MODEL.DENSE_HEAD.PROMPT_VECTORS", rows), file)
    without = ("MODEL.DENSE_HEAD.PROMPT_VECTORS", 0, "MODEL.WEIGHTS_IGNORE", [r"^prompt_vectors"])
    build_model(glip_cfg("glip_prompt_tuning", *without), file)


def test_an_interrupted_run_goes_on_bit_for_bit(glip_cfg: ConfigBuilder, base: str, stopped_before: Stop) -> None:
    opts = ("glip_prompt_tuning", "MODEL.WEIGHTS", base, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.MAX_ITER", 3)
    opts = (*opts, "SOLVER.EMA.ENABLED_ON", True, "SOLVER.ACCUMULATION_STEPS", 2)
    whole = trained(glip_cfg(*opts, output="whole"))
    stopped_before(2, glip_cfg(*opts, output="parts"))
    Path(base).unlink()
    resumed = trained(glip_cfg(*opts, output="parts"), resume=True)
    assert resumed.start_iter == 2
    left, right = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())
    average = whole.average.state_dict()["parameters"]  # type: ignore[union-attr]
    assert list(average) == [VECTORS] and not torch.equal(average[VECTORS], left[VECTORS])
    assert torch.equal(average[VECTORS], resumed.average.state_dict()["parameters"][VECTORS])  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------- with other parts


def test_results_follow_the_vectors_though_the_texts_features_are_kept(glip_cfg: ConfigBuilder, base: str) -> None:
    trainer = trained(glip_cfg("glip_prompt_tuning", "MODEL.WEIGHTS", base))
    model = trainer.model.eval()
    before = scores(model)
    assert torch.equal(scores(model), before), "BERT's features are kept"
    with torch.no_grad():
        model.prompt_vectors.weight.mul_(2.0)
    fresh = build_model(trainer.cfg, base)
    fresh.load_state_dict(model.state_dict())
    assert not torch.equal(scores(model), before) and torch.equal(scores(model), scores(fresh))


def test_prompts_that_the_vectors_do_not_fit(glip_cfg: ConfigBuilder, caplog: pytest.LogCaptureFixture) -> None:
    model = build_model(glip_cfg("glip_prompt_tuning", "MODEL.DENSE_HEAD.PROMPT_VECTORS", 12))
    assert scores(model).shape[1] == 10
    with pytest.raises(ValueError, match=r"has 13 tokens, but there are 12 .*\(MODEL.DENSE_HEAD.PROMPT_VECTORS\)"):
        scores(model, *NAMES, "white square")
    assert "take 2 prompts" not in caplog.text
    model.categories_per_prompt = 2
    scores(model, *NAMES)
    assert "a picture's names take 2 prompts" in caplog.text


def test_adapters_and_vectors(glip_cfg: ConfigBuilder, base: str) -> None:
    lora = ("MODEL.WEIGHTS", base, "MODEL.LORA.ENABLED_ON", True)
    with pytest.raises(ValueError, match=r"finds \S+lora_A\S+ of an adapter \(MODEL.LORA\)"):
        Trainer(glip_cfg("glip_prompt_tuning", *lora))
    both = ("SOLVER.FREEZE", [], "MODEL.LORA.TRAIN", ["^prompt_vectors"])
    trainer = trained(glip_cfg("glip_prompt_tuning", *lora, *both))
    before, after = state_of(base), trainer.model.state_dict()
    changed = {name for name in after if name not in before or not torch.equal(after[name], before[name])}
    assert VECTORS in changed and all(
        name.startswith(("tower.blocks.0.fusion", "tower.blocks.0.text")) for name in changed - {VECTORS}
    )
    merged = build_model(glip_cfg("glip_prompt_tuning"), f"{trainer.cfg.OUTPUT_DIR}/model_final.pth")
    torch.testing.assert_close(scores(merged), scores(trainer.model.eval()), atol=1e-5, rtol=1e-5)
