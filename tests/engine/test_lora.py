"""Fine-tuning by adapters: what is trained, saved, gone on with, and merged."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.checkpoint.adapters import merge_adapter, read_adapter
from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.cli import merge_lora
from grounding_dino.engine.lora import build_adapters, target_layers
from grounding_dino.engine.trainer import Trainer
from grounding_dino.model_zoo import build_model, load_cfg

import peft
import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

ConfigBuilder = Callable[..., CfgNode]
Stop = Callable[[int, CfgNode], Trainer]
LORA = ("MODEL.LORA.ENABLED_ON", True, "MODEL.LORA.RANK", 4, "SOLVER.BASE_LR", 1e-2, "SOLVER.WARMUP_ITERS", 0)


def started(cfg: CfgNode, resume: bool = False) -> Trainer:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    return trainer


def trained(cfg: CfgNode, resume: bool = False) -> Trainer:
    trainer = started(cfg, resume)
    trainer.train()
    return trainer


@pytest.fixture
def base(train_cfg: ConfigBuilder) -> str:
    """A checkpoint to fine-tune."""
    return f"{trained(train_cfg('SOLVER.MAX_ITER', 1, output='base')).cfg.OUTPUT_DIR}/model_final.pth"


@pytest.fixture
def picture() -> dict[str, Any]:
    image = torch.randint(256, (3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"image": image, "height": 96, "width": 128, "categories": ["red square", "blue square"]}


def outputs(model: nn.Module, picture: dict[str, Any]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        features = model.eval().extract_features(model.preprocess_image([picture]))
        last = model.detect(features, model.prompts_of(picture)).layers[-1]
    return last.pred_logits.sigmoid(), last.pred_boxes


def assert_close(left: nn.Module, right: nn.Module, picture: dict[str, Any]) -> None:
    for found, expected in zip(outputs(left, picture), outputs(right, picture)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def differ(left: nn.Module, right: nn.Module, picture: dict[str, Any]) -> bool:
    return any((a - b).abs().max() > 1e-3 for a, b in zip(outputs(left, picture), outputs(right, picture)))


# ------------------------------------------------------------------------------------------------- what is adapted


def test_fresh_adapters_change_neither_outputs_nor_names(tiny_cfg: CfgNode, picture: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain, adapted = build_model(tiny_cfg), build_model(tiny_cfg)
    adapted.load_state_dict(plain.state_dict())
    tiny_cfg.MODEL.LORA.ENABLED_ON = True
    build_adapters(tiny_cfg, adapted)
    assert_close(plain, adapted, picture)
    assert list(adapted.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(tensor, adapted.state_dict()[name]) for name, tensor in plain.state_dict().items())
    other = build_model(tiny_cfg)
    adapted.load_state_dict(other.state_dict(), strict=True)
    assert_close(other, adapted, picture)


def test_attention_and_feed_forward_layers_are_the_default(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg)
    layers = target_layers(tiny_cfg, model)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    left_out = {name for name in linear - set(layers) if not name.startswith("backbone.")}
    heads = ("text_encoder.projection", "query_selection.", "transformer_decoder.reference_head.")
    assert all(name.startswith((*heads, "transformer_decoder.box_heads.")) for name in left_out)
    for name in ("self_attention.in_proj", "cross_attention.value_proj", "ffn.0", "text_attention.out_proj"):
        assert f"transformer_decoder.layers.1.{name}" in layers
    assert "pixel_decoder.layers.0.fusion.attention.query_image" in layers
    assert "text_encoder.bert.encoder.layer.0.attention.self.query" in layers
    tiny_cfg.MODEL.TEXT_ENCODER.FREEZE_ON = True
    assert target_layers(tiny_cfg, model) == [name for name in layers if not name.startswith("text_encoder.")]


def test_the_layers_of_glips_text_and_fusion_are_the_default(tiny_glip_cfg: CfgNode) -> None:
    model = build_model(tiny_glip_cfg)
    layers = target_layers(tiny_glip_cfg, model)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    left_out = {name for name in linear - set(layers) if not name.startswith("backbone.")}
    assert all(name.startswith(("head.", "tower.blocks.0.convolution.")) for name in left_out)
    assert "tower.blocks.0.fusion.attention.query_image" in layers and "tower.blocks.0.text_layer.ffn.2" in layers
    assert "text_encoder.bert.encoder.layer.0.attention.self.query" in layers


@pytest.mark.parametrize(("rank", "alpha"), [(2, 4), (3, 12)])
def test_targets_rank_alpha_and_dropout_are_those_asked_for(tiny_cfg: CfgNode, rank: int, alpha: int) -> None:
    opts = ["MODEL.LORA.ENABLED_ON", True, "MODEL.LORA.TARGETS", [r"decoder\.layers\.1\.ffn\.0$"]]
    opts += ["MODEL.LORA.RANK", rank, "MODEL.LORA.ALPHA", alpha, "MODEL.LORA.DROPOUT", 0.25]
    tiny_cfg.merge_from_list(opts)
    model = build_model(tiny_cfg)
    build_adapters(tiny_cfg, model)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(shapes.values()) == sorted([(rank, 32), (32, rank)])
    layer = model.transformer_decoder.layers[1].ffn[0]
    assert layer.scaling["default"] == alpha / rank and layer.lora_dropout["default"].p == 0.25
    assert all("layers.1.ffn.0.lora_" in name for name in shapes)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("TARGETS", ["gone"]), "LORA.TARGETS has 'gone', but no linear layer's name matches it"),
        (("TARGETS", ["("]), r"LORA.TARGETS has '\(', which is no regular expression"),
        (("TRAIN", ["gone"]), "LORA.TRAIN has 'gone', which matches no parameter's name"),
        (("TRAIN", [r"ffn\.0\.weight"]), r"finds pixel_decoder.*ffn.0.weight, whose layer has an adapter"),
        (("RANK", 0), "LORA.RANK is 0; give 1 or more"),
        (("ALPHA", 0), "LORA has ALPHA 0 and DROPOUT 0.0; give a positive number"),
        (("DROPOUT", 1.0), "ALPHA 16 and DROPOUT 1.0; .* a share from 0 to below 1"),
        (("WEIGHTS", "old"), "fresh adapters: merge the old ones first"),
    ],
)
def test_what_cannot_be_is_refused(tiny_cfg: CfgNode, opts: tuple[str, Any], message: str) -> None:
    tiny_cfg.merge_from_list(["MODEL.LORA.ENABLED_ON", True, f"MODEL.LORA.{opts[0]}", opts[1]])
    with pytest.raises(ValueError, match=message):
        build_adapters(tiny_cfg, build_model(load_cfg(tiny_cfg, ["MODEL.LORA.WEIGHTS", ""])))


def test_what_does_not_go_with_adapters_is_refused(tiny_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(tiny_cfg)
    tiny_cfg.MODEL.LORA.ENABLED_ON, tiny_cfg.SOLVER.DATA_PARALLEL = True, "fsdp2"
    with pytest.raises(
        ValueError, match="does not go with SOLVER.DATA_PARALLEL 'fsdp2'.*set SOLVER.DATA_PARALLEL 'ddp'"
    ):
        build_adapters(tiny_cfg, model)
    tiny_cfg.SOLVER.DATA_PARALLEL, tiny_cfg.MODEL.TEXT_ENCODER.FREEZE_ON = "ddp", True
    tiny_cfg.MODEL.LORA.TARGETS = ["bert"]
    with pytest.raises(ValueError, match="finds layers of BERT, but MODEL.TEXT_ENCODER.FREEZE_ON is True"):
        build_adapters(tiny_cfg, model)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    with pytest.raises(ValueError, match="need the package peft, which is not installed; pip install peft"):
        build_adapters(tiny_cfg, model)


# ---------------------------------------------------------------------------------------------- training and files


def test_only_adapters_and_what_is_named_are_trained(train_cfg: ConfigBuilder, base: str) -> None:
    trainer = started(train_cfg(*LORA, "MODEL.WEIGHTS", base, "MODEL.LORA.TRAIN", ["^denoising", "box_heads"]))
    start = torch.load(base, weights_only=True)["model"]
    assert all(torch.equal(tensor, trainer.model.state_dict()[name]) for name, tensor in start.items())
    trainer.train()
    after = trainer.model.state_dict()
    changed = {name for name, tensor in start.items() if not torch.equal(tensor, after[name])}
    targets = {f"{name}.weight" for name in target_layers(trainer.cfg, build_model(train_cfg()))}
    full = {name for name in start if name.startswith("denoising") or "box_heads" in name}
    assert changed <= targets | full
    assert len(changed & targets) > 0.9 * len(targets) and len(changed & full) > 3
    assert {p.requires_grad for name, p in trainer.model.named_parameters() if name.startswith("backbone.")} == {False}


def test_the_file_holds_adapters_alone_and_merges_to_the_trained_model(
    train_cfg: ConfigBuilder, base: str, picture: dict[str, Any], tmp_path: Path
) -> None:
    trainer = trained(train_cfg(*LORA, "MODEL.WEIGHTS", base, "MODEL.LORA.TRAIN", ["^denoising", "box_heads"]))
    folder = Path(trainer.cfg.OUTPUT_DIR, "adapter")
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config, tensors = read_adapter(folder)
    assert config.base_model_name_or_path == base
    assert {name for name in tensors if ".lora_" not in name} == {
        name for name in trainer.model.state_dict() if name.startswith("denoising") or "box_heads" in name
    }
    merged = build_model(train_cfg("MODEL.WEIGHTS", base, "MODEL.LORA.WEIGHTS", str(folder)))
    assert_close(merged, trainer.model, picture)
    assert differ(merged, build_model(train_cfg("MODEL.WEIGHTS", base)), picture)
    assert list(merged.state_dict()) == list(torch.load(base, weights_only=True)["model"])
    # model_final.pth shows merged weights, so it needs neither base nor adapter
    final = build_model(train_cfg(), f"{trainer.cfg.OUTPUT_DIR}/model_final.pth")
    assert_close(final, merged, picture)
    # and peft itself reads the folder
    theirs = peft.PeftModel.from_pretrained(build_model(train_cfg("MODEL.WEIGHTS", base)), str(folder))
    assert_close(theirs.get_base_model(), merged, picture)


def test_the_tool_writes_what_merging_gives(
    train_cfg: ConfigBuilder,
    base: str,
    picture: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer = trained(train_cfg(*LORA, "MODEL.WEIGHTS", base, "SOLVER.MAX_ITER", 1))
    folder, output = f"{trainer.cfg.OUTPUT_DIR}/adapter", str(tmp_path / "merged.safetensors")
    Path(tmp_path, "tiny.yaml").write_text(train_cfg().dump())
    arguments = ["--config-file", str(tmp_path / "tiny.yaml"), "--weights", base]
    assert merge_lora.main([*arguments, folder, output]) == 0
    assert "with" in capsys.readouterr().out
    assert_close(build_model(train_cfg(), output), trainer.model, picture)
    assert merge_lora.main([*arguments, str(tmp_path), output]) == 1
    assert "has no adapter_config.json" in capsys.readouterr().err


def test_adapters_belong_to_the_trained_weights_of_a_file_with_averaged_ones(
    train_cfg: ConfigBuilder, base: str, tmp_path: Path
) -> None:
    ema = ("SOLVER.EMA.ENABLED_ON", True, "SOLVER.MAX_ITER", 2)
    first = trained(train_cfg(*ema, "MODEL.WEIGHTS", base, "OUTPUT_DIR", str(tmp_path / "first"))).cfg.OUTPUT_DIR
    start = ("MODEL.WEIGHTS", f"{first}/model_final.pth")
    second = trained(train_cfg(*LORA, *ema, *start, "OUTPUT_DIR", str(tmp_path / "second"))).cfg.OUTPUT_DIR
    merged = build_model(train_cfg(*ema, *start, "MODEL.LORA.WEIGHTS", f"{second}/adapter")).state_dict()
    for name, tensor in torch.load(f"{second}/model_final.pth", weights_only=True)["model"].items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=1e-5)


def test_best_and_last_adapters(train_cfg: ConfigBuilder, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [5.0, 1.0]
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_: {"bbox": {"AP": scores.pop(0)}}))
    best = ("DATASETS.TEST", ("squares",), "TEST.EVAL_PERIOD", 1, "SOLVER.BEST_CHECKPOINT_METRIC", "bbox/AP")
    trainer = trained(train_cfg(*LORA, "MODEL.WEIGHTS", base, *best, "SOLVER.MAX_ITER", 2))
    models = {}
    for name, file in (("adapter", "model_final"), ("adapter_best", "model_best")):
        models[name] = build_model(train_cfg("MODEL.WEIGHTS", base))
        merge_adapter(models[name], f"{trainer.cfg.OUTPUT_DIR}/{name}")
        state = torch.load(f"{trainer.cfg.OUTPUT_DIR}/{file}.pth", weights_only=True)["model"]
        for key, tensor in models[name].state_dict().items():
            torch.testing.assert_close(tensor, state[key], atol=1e-6, rtol=1e-5)
    left, right = (model.state_dict() for model in models.values())
    assert any(not torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_the_best_adapters_are_also_there_averaged(
    train_cfg: ConfigBuilder, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_: {"bbox": {"AP": 5.0}}))
    best = ("DATASETS.TEST", ("squares",), "TEST.EVAL_PERIOD", 2, "SOLVER.BEST_CHECKPOINT_METRIC", "ema/bbox/AP")
    ema = ("SOLVER.EMA.ENABLED_ON", True)
    folder = trained(train_cfg(*LORA, *ema, *best, "MODEL.WEIGHTS", base, "SOLVER.MAX_ITER", 3)).cfg.OUTPUT_DIR
    for adapter, opts in (("ema/adapter_best", ema), ("adapter_best", ())):
        merged = build_model(train_cfg("MODEL.WEIGHTS", base, "MODEL.LORA.WEIGHTS", f"{folder}/{adapter}"))
        expected = build_model(train_cfg(*opts), f"{folder}/model_best.pth").state_dict()
        for name, tensor in merged.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)


def test_an_interrupted_run_goes_on_bit_for_bit(train_cfg: ConfigBuilder, base: str, stopped_before: Stop) -> None:
    opts = (*LORA, "MODEL.WEIGHTS", base, "SOLVER.CHECKPOINT_PERIOD", 2, "MODEL.LORA.DROPOUT", 0.1)
    opts = (*opts, "SOLVER.EMA.ENABLED_ON", True, "MODEL.LORA.TRAIN", ["^denoising"])
    whole = trained(train_cfg(*opts, output="whole"))
    stopped_before(3, train_cfg(*opts, output="parts"))
    Path(base).unlink()  # a run needs what it began with no more
    resumed = trained(train_cfg(*opts, output="parts"), resume=True)
    assert resumed.start_iter == 2
    left, right = dict(whole.model.named_parameters()), dict(resumed.model.named_parameters())
    assert all(torch.equal(parameter, right[name]) for name, parameter in left.items())
    states = [trainer.optimizer.state_dict()["state"] for trainer in (whole, resumed)]
    assert all(
        torch.equal(value, states[1][key][name]) for key, row in states[0].items() for name, value in row.items()
    )
    averages = [trainer.average.state_dict() for trainer in (whole, resumed)]
    for part in ("parameters", "weights"):
        assert all(torch.equal(tensor, averages[1][part][name]) for name, tensor in averages[0][part].items())


def test_averaged_adapters_are_used_and_saved(train_cfg: ConfigBuilder, base: str, picture: dict[str, Any]) -> None:
    ema = ("SOLVER.EMA.ENABLED_ON", True)
    trainer = trained(train_cfg(*LORA, *ema, "MODEL.WEIGHTS", base))
    final = f"{trainer.cfg.OUTPUT_DIR}/model_final.pth"
    averaged = build_model(train_cfg(*ema), final)
    with trainer.average.applied():
        assert_close(averaged, trainer.model, picture)
    assert differ(averaged, build_model(train_cfg(), final), picture)
    adapter = ("MODEL.LORA.WEIGHTS", f"{trainer.cfg.OUTPUT_DIR}/ema/adapter")
    assert_close(averaged, build_model(train_cfg("MODEL.WEIGHTS", base, *adapter)), picture)


def test_other_adapters_than_the_checkpoints_are_refused(train_cfg: ConfigBuilder, base: str) -> None:
    trained(train_cfg(*LORA, "MODEL.WEIGHTS", base, "SOLVER.MAX_ITER", 1))
    for other in (("MODEL.LORA.RANK", 2), ("MODEL.LORA.TRAIN", ["^denoising"])):
        with pytest.raises(ValueError, match="the checkpoint has other adapters than MODEL.LORA asks for"):
            started(train_cfg(*LORA, *other), resume=True)
    with pytest.raises(ValueError, match="with another optimizer or other parameters to train"):
        started(train_cfg(), resume=True)


def test_adapters_on_weights_that_have_them_already_are_warned_of(
    train_cfg: ConfigBuilder, base: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = trained(train_cfg(*LORA, "MODEL.WEIGHTS", base, "SOLVER.MAX_ITER", 1)).cfg.OUTPUT_DIR
    for weights, warned in ((base, False), (f"{folder}/model_final.pth", True)):
        caplog.clear()
        build_model(train_cfg("MODEL.WEIGHTS", weights, "MODEL.LORA.WEIGHTS", f"{folder}/adapter"))
        assert ("have the adapters of their own training in them already" in caplog.text) == warned


def test_full_fine_tuning_can_start_from_merged_adapters(train_cfg: ConfigBuilder, base: str) -> None:
    trainer = trained(train_cfg(*LORA, "MODEL.WEIGHTS", base, "SOLVER.MAX_ITER", 1))
    opts = ("MODEL.WEIGHTS", base, "MODEL.LORA.WEIGHTS", f"{trainer.cfg.OUTPUT_DIR}/adapter", "SOLVER.MAX_ITER", 2)
    full = started(train_cfg(*opts, output="full"))
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(full.model.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)
    before = {name: p.detach().clone() for name, p in full.model.named_parameters()}
    full.train()
    assert all(p.requires_grad for p in full.model.parameters())
    name = "transformer_decoder.layers.0.ffn.0.weight"
    assert not torch.equal(before[name], full.model.state_dict()[name]), "the optimizer has the merged layers' weights"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "base_model.model.gone.lora_A.weight": torch.zeros(4, 4)}, "no linear layer gone"),
        (lambda t: {**t, "base_model.model.gone.weight": torch.zeros(4)}, "no parameter gone.weight"),
        (
            lambda t: {k: v[:, :-1] if k.endswith("ffn.2.lora_A.weight") else v for k, v in t.items()},
            r"is \(4, 31\) instead",
        ),
        (lambda t: {k: v for k, v in t.items() if not k.endswith("1.ffn.2.lora_B.weight")}, "it lacks .*lora_B.weight"),
        (lambda t: {}, "no layers"),
    ],
)
def test_an_adapter_of_another_model_is_refused_and_changes_nothing(
    tiny_cfg: CfgNode, tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    from safetensors.torch import load_file, save_file

    model = build_model(tiny_cfg)
    cfg = load_cfg(tiny_cfg, ["MODEL.LORA.ENABLED_ON", True, "MODEL.LORA.RANK", 4])
    adapters = build_adapters(cfg, build_model(tiny_cfg))
    assert adapters is not None
    adapters.save(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: t.contiguous() for name, t in change(load_file(file)).items()}, file)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"does not fit the model: .*{message}"):
        merge_adapter(model, file)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 2}, r"does not fit the model: .*lora_A.weight is \(4, .*instead of \(2, "),
        ({"r": "4"}, "has the rank r '4' and lora_alpha 16, which are no numbers"),
        ({"lora_alpha": None}, "and lora_alpha None, which are no numbers"),
        ({"peft_type": "NONE"}, "adapter_config.json cannot be read"),
    ],
)
def test_an_adapter_with_another_configuration_is_refused_and_changes_nothing(
    tiny_cfg: CfgNode, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    model = build_model(tiny_cfg)
    adapters = build_adapters(
        load_cfg(tiny_cfg, ["MODEL.LORA.ENABLED_ON", True, "MODEL.LORA.RANK", 4]), build_model(tiny_cfg)
    )
    assert adapters is not None
    adapters.save(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    names = set(model.state_dict())
    with pytest.raises(CheckpointError, match=message):
        merge_adapter(model, tmp_path)
    assert set(model.state_dict()) == names


@pytest.mark.slow
def test_the_adapter_of_the_model_in_the_package_is_below_two_megabytes(tmp_path: Path) -> None:
    cfg = load_cfg("shapes_tiny", ["MODEL.DEVICE", "cpu", "MODEL.LORA.ENABLED_ON", True])
    adapters = build_adapters(cfg, build_model(cfg))
    assert adapters is not None
    adapters.save(str(tmp_path))
    assert 0.5e6 < (tmp_path / "adapter_model.safetensors").stat().st_size < 2e6
