"""Strict loading: everything is taken, or the error says what does not fit and what would."""

import logging
import re

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.checkpoint.loading import load_weights
from grounding_dino.checkpoint.origins import load_checkpoint
from grounding_dino.checkpoint.saving import save_checkpoint
from grounding_dino.cli.train import build_parser
from grounding_dino.model_zoo import get_cfg

import pytest
import torch


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture(scope="module")
def mm_model(make_model):
    return make_model(mm=True)


def assert_equal_models(a, b, leaving_out=()):
    states = a.state_dict(), b.state_dict()
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        if not name.startswith(tuple(leaving_out)):
            assert torch.equal(states[0][name], states[1][name]), name


@pytest.mark.parametrize("to, name", [("ours", "a.pth"), ("ours", "a.safetensors"), ("mmdet", "a.pth")])
def test_exact_through_files(tmp_path, make_model, mm_model, to, name):
    save_checkpoint(str(tmp_path / name), mm_model.state_dict(), to=to)
    other = make_model(mm=True)
    torch.nn.init.zeros_(other.query_selection.content.weight)
    report = load_weights(other, tmp_path / name)
    assert report.origin == to and not report.new and not report.dropped
    assert_equal_models(mm_model, other)


def test_official_lacks_the_denoising_embedding_unless_it_lies_beside(tmp_path, make_model, model):
    path = tmp_path / "a.pth"
    save_checkpoint(str(path), model.state_dict(), to="official")
    other = make_model()
    with torch.no_grad():
        other.denoising.label_embedding.weight.zero_()
    assert not load_weights(other, path).new
    assert_equal_models(model, other)
    content = torch.load(path, weights_only=True)
    del content["extras"]
    torch.save(content, path)
    with torch.no_grad():
        other.denoising.label_embedding.weight.fill_(3)
    assert load_weights(other, path).new == ("denoising.label_embedding.weight",)
    assert (other.denoising.label_embedding.weight == 3).all()


def test_half_precision_becomes_the_models_dtype(tmp_path, make_model, model):
    save_checkpoint(str(tmp_path / "a.safetensors"), model.state_dict(), half=True)
    assert load_checkpoint(str(tmp_path / "a.safetensors")).state["pixel_decoder.level_embed"].dtype == torch.float16
    other = make_model()
    load_weights(other, tmp_path / "a.safetensors")
    assert all(parameter.dtype == torch.float32 for parameter in other.parameters())
    for a, b in zip(model.parameters(), other.parameters()):
        assert torch.equal(a.half().float(), b)


def test_half_refuses_what_it_cannot_hold(tmp_path, model):
    state = {**model.state_dict(), "pixel_decoder.level_embed": torch.full((4, 32), 1e6)}
    with pytest.raises(CheckpointError, match="level_embed.*65504"):
        save_checkpoint(str(tmp_path / "a.pth"), state, half=True)
    assert not (tmp_path / "a.pth").exists()


def test_extras_survive_in_both_of_our_formats(tmp_path, model):
    extras = {"text_encoder.bert.pooler.dense.bias": torch.randn(3), "carried.official.label_enc.weight": torch.ones(2)}
    for name in ("a.pth", "a.safetensors"):
        save_checkpoint(str(tmp_path / name), model.state_dict(), extras)
        checkpoint = load_checkpoint(str(tmp_path / name))
        assert checkpoint.extras.keys() == extras.keys()
        assert all(torch.equal(checkpoint.extras[key], extras[key]) for key in extras)
        assert checkpoint.state.keys() == model.state_dict().keys()


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_strict(tmp_path, make_model, model, change):
    state = dict(model.state_dict())
    name = "transformer_decoder.norm.weight"
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        name = "transformer_decoder.norm.scale"
        state[name] = torch.ones(1)
    else:
        state[name] = torch.ones(7)
    save_checkpoint(str(tmp_path / "a.pth"), state)
    other = make_model(**{"EMBED_DIM": 32})
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_weights(other, tmp_path / "a.pth")
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_another_size_is_refused_with_a_bounded_list(tmp_path, make_model, model):
    save_checkpoint(str(tmp_path / "a.pth"), model.state_dict())
    with pytest.raises(CheckpointError) as error:
        load_weights(make_model(**{"SWIN.EMBED_DIM": 24, "PIXEL_DECODER.NUM_LAYERS": 1}), tmp_path / "a.pth")
    text = str(error.value)
    assert "unexpected" in text and "of another shape" in text and "more" in text
    assert "a Swin of 12 channels, 32 channels, 4 levels" in text
    assert len(text) < 3000


def test_untranslated_names_of_other_origins_are_unexpected(tmp_path, make_model, model):
    save_checkpoint(str(tmp_path / "a.pth"), model.state_dict(), to="official")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    content["model"]["module.transformer.decoder.layers.0.adapter.weight"] = torch.ones(1)
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="1 unexpected: transformer.decoder.layers.0.adapter.weight"):
        load_weights(make_model(), tmp_path / "a.pth")


def test_one_box_head_for_all_layers_fills_one_each_and_back(tmp_path, make_model, model):
    save_checkpoint(str(tmp_path / "shared.pth"), model.state_dict())
    separate = make_model(**{"TRANSFORMER_DECODER.SHARED_BOX_HEAD_ON": False})
    load_weights(separate, tmp_path / "shared.pth")
    heads = separate.transformer_decoder.box_heads
    assert all(torch.equal(a, b) for a, b in zip(heads[0].parameters(), heads[1].parameters()))
    save_checkpoint(str(tmp_path / "separate.pth"), separate.state_dict())
    other = make_model()
    load_weights(other, tmp_path / "separate.pth")
    assert_equal_models(model, other)


def test_different_box_heads_do_not_fit_a_shared_one(tmp_path, make_model):
    separate = make_model(**{"TRANSFORMER_DECODER.SHARED_BOX_HEAD_ON": False})
    save_checkpoint(str(tmp_path / "a.pth"), separate.state_dict())
    with pytest.raises(CheckpointError, match=r"box_heads\.1.*\n.*one box head a layer"):
        load_weights(make_model(), tmp_path / "a.pth")


def test_ignore(tmp_path, make_model, model, caplog):
    save_checkpoint(str(tmp_path / "a.pth"), model.state_dict())
    other = make_model(**{"DENOISING.NUM_LABELS": 3})
    with pytest.raises(CheckpointError, match="denoising"):
        load_weights(other, tmp_path / "a.pth")
    with caplog.at_level(logging.INFO):
        report = load_weights(other, tmp_path / "a.pth", ignore=["^denoising"])
    assert report.ignored == ("denoising.label_embedding.weight",)
    assert "1 ignored: denoising.label_embedding.weight" in caplog.text


def test_a_model_without_denoising_takes_a_checkpoint_with_it(tmp_path, make_model, model, caplog):
    save_checkpoint(str(tmp_path / "a.pth"), model.state_dict())
    other = make_model(**{"DENOISING.ENABLED_ON": False})
    with caplog.at_level(logging.INFO):
        report = load_weights(other, tmp_path / "a.pth")
    assert report.dropped == ("denoising.label_embedding.weight",) and "1 dropped" in caplog.text


def test_the_ways_to_load_a_part_that_an_error_names_exist(tmp_path, make_model, model):
    save_checkpoint(str(tmp_path / "a.pth"), {**model.state_dict(), "new.weight": torch.ones(2)})
    with pytest.raises(CheckpointError) as refused:
        load_weights(make_model(), tmp_path / "a.pth")
    cfg, parser = get_cfg(), build_parser()
    keys = set(re.findall(r"MODEL\.([A-Z_]+)", str(refused.value)))
    assert keys == {"WEIGHTS_IGNORE", "WARM_START_ON"} <= set(cfg.MODEL)
    flags = set(re.findall(r"--[a-z-]+", str(refused.value)))
    assert flags == {"--warm-start"} <= set(parser._option_string_actions)


def test_warm_start_takes_what_fits_and_says_so(tmp_path, make_model, model, caplog):
    save_checkpoint(str(tmp_path / "a.pth"), model.state_dict())
    other = make_model(**{"PIXEL_DECODER.FFN_DIM": 48})
    with caplog.at_level(logging.WARNING):
        report = load_weights(other, tmp_path / "a.pth", warm_start=True)
    assert len(report.misshapen) == 2 * 3 and report.taken
    (record,) = caplog.records
    assert f"{len(report.taken)} tensors taken" in record.message and "of another shape" in record.message
    assert torch.equal(other.pixel_decoder.level_embed, model.pixel_decoder.level_embed)


RESNET = {
    "BACKBONE.NAME": "build_resnet_backbone",
    "RESNETS.DEPTH": 18,
    "RESNETS.RES2_OUT_CHANNELS": 64,
    "PIXEL_DECODER.IN_FEATURES": ["res3", "res4", "res5"],
}


@pytest.mark.parametrize(
    "changes, difference",
    [
        ({"SWIN.EMBED_DIM": 24}, r"73 of another shape: backbone\.patch_embed"),
        ({"SWIN.DEPTHS": [1, 1, 3, 1]}, r"missing: backbone\.layers\.2\.blocks\.2"),
        ({"SWIN.DEPTHS": [1, 1, 1, 1]}, r"unexpected: backbone\.layers\.2\.blocks\.1"),
        (RESNET, r"missing: backbone\.stem.*unexpected: backbone\.patch_embed"),
    ],
)
@pytest.mark.parametrize("warm_start", [True, False])
def test_another_backbone_is_refused_also_by_a_warm_start(tmp_path, make_model, model, changes, difference, warm_start):
    state = {**model.state_dict(), "backbone.patch_embed.projection.weight": torch.ones(96, 3, 4, 4)}  # Swin-T's
    save_checkpoint(str(tmp_path / "a.pth"), state if changes is RESNET else model.state_dict())
    other = make_model(**changes)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=difference if warm_start else "does not fit the model") as refused:
        load_weights(other, tmp_path / "a.pth", warm_start=warm_start)
    assert "the checkpoint holds Grounding DINO, " + ("Swin-T" if changes is RESNET else "a Swin of 12") in str(
        refused.value
    )
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    if not warm_start:
        return
    report = load_weights(other, tmp_path / "a.pth", warm_start=True, ignore=["^backbone"])
    assert not any(name.startswith("backbone") for name in report.taken)
    assert torch.equal(other.transformer_decoder.norm.weight, model.transformer_decoder.norm.weight)


def test_a_warm_start_without_a_backbone_in_the_file(tmp_path, make_model, model):
    rest = {key: value for key, value in model.state_dict().items() if not key.startswith("backbone.")}
    save_checkpoint(str(tmp_path / "a.pth"), rest)
    report = load_weights(make_model(), tmp_path / "a.pth", warm_start=True)
    assert set(report.taken) == set(rest)


def test_output_norms_do_not_make_another_backbone(tmp_path, make_model, model):
    finer = make_model(**{"SWIN.OUT_FEATURES": ["stage1", "stage2", "stage3", "stage4"]})
    save_checkpoint(str(tmp_path / "a.pth"), model.state_dict())
    report = load_weights(finer, tmp_path / "a.pth", warm_start=True)
    assert set(report.new) == {"backbone.norms.stage1.weight", "backbone.norms.stage1.bias"}


def test_counters_of_norms_need_no_counterpart(tmp_path, make_model):
    """A file of frozen norms fills a model whose norms count their steps, and the other way round."""
    frozen = make_model(**RESNET)
    counting = make_model(**{**RESNET, "RESNETS.NORM": "BN"})
    save_checkpoint(str(tmp_path / "frozen.pth"), frozen.state_dict())
    report = load_weights(counting, tmp_path / "frozen.pth")
    assert not report.new and torch.equal(counting.backbone.stem.conv1.weight, frozen.backbone.stem.conv1.weight)
    counting.backbone.stem.conv1.norm.num_batches_tracked.fill_(5)
    save_checkpoint(str(tmp_path / "counting.pth"), counting.state_dict())
    load_weights(frozen, tmp_path / "counting.pth")
    other = make_model(**{**RESNET, "RESNETS.NORM": "BN"})
    load_weights(other, tmp_path / "counting.pth")
    assert other.backbone.stem.conv1.norm.num_batches_tracked == 5


def test_unknown_models_are_named(tmp_path):
    torch.save({"model": {"conv1.weight": torch.ones(1), "fc.bias": torch.ones(1)}}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"(?s)not known here \(conv1.weight, fc.bias.*MODEL.BACKBONE.WEIGHTS"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "resnet.pth")
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match=r"no tensors.*epoch"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "nothing.pth")
