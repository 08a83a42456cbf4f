"""Every name of the published checkpoints is accounted for, and comes back bit for bit."""

import json
import re
from pathlib import Path

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.checkpoint.loading import load_checkpoint_into
from grounding_dino.checkpoint.origins import translate_checkpoint
from grounding_dino.checkpoint.saving import translate_for
from grounding_dino.engine.optimizer import freeze_parameters
from grounding_dino.model_zoo import load_cfg
from grounding_dino.modeling.meta_arch.generalized_dino import GeneralizedDINO

import pytest
import torch

REFERENCE = Path(__file__).parents[1] / "reference"
OFFICIAL = ["manifest_swin_b_cogcoor", "manifest_swin_t_ogc"]
MMDET = sorted(path.stem for path in (REFERENCE / "mmdet").glob("manifest_*grounding_dino*.json"))


def distinct(shapes):
    """A tensor of each shape, without memory of its own except where columns matter; no two are alike."""
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        row = number + torch.rand(shape[-1] if shape else ())
        tensors[name] = row.expand(shape)
    return tensors


def official(name):
    tensors = distinct(json.loads((REFERENCE / "grounding_dino" / f"{name}.json").read_text()))
    for alias, canonical in json.loads((REFERENCE / "grounding_dino" / "aliases.json").read_text()).items():
        tensors[alias] = tensors[canonical]
    return tensors


def mmdet(name):
    return distinct(json.loads((REFERENCE / "mmdet" / f"{name}.json").read_text()))


def dino(name):
    tensors = distinct(json.loads((REFERENCE / "dino" / f"manifest_{name}.json").read_text()))
    for alias, canonical in json.loads((REFERENCE / "dino" / "aliases.json").read_text()).items():
        tensors[alias] = tensors[canonical]
    return tensors


def buffers_of_releases(tensors):
    """The integers and remnants that released files of the authors hold besides the manifest."""
    blocks = [name for name in tensors if name.endswith("attn.relative_position_bias_table")]
    return {
        **{re.sub("bias_table$", "index", name): torch.arange(4).reshape(2, 2) for name in blocks},
        "bert.embeddings.position_ids": torch.arange(512)[None],
        "label_enc.weight": torch.rand(1).expand(2001, 256),
    }


def assert_same(a, b):
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())[:10]
    different = [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])]
    assert not different, different[:10]


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_official_round_trip(name, prefix):
    tensors = official(name)
    tensors.update(buffers_of_releases(tensors))
    checkpoint = translate_checkpoint({"model": {prefix + k: v for k, v in tensors.items()}}, name)
    assert checkpoint.origin == "official" and not checkpoint.unknown
    back, aside = translate_for("official", checkpoint.state, checkpoint.extras)
    assert_same(back, tensors)
    assert not aside


def test_official_shared_box_head_is_one_of_ours():
    state = translate_checkpoint({"model": official("manifest_swin_t_ogc")}, "x").state
    assert {name.split(".")[2] for name in state if ".box_heads." in name} == {"0"}


def test_official_separate_box_heads_stay_separate():
    tensors = official("manifest_swin_t_ogc")
    for prefix in ("bbox_embed", "transformer.decoder.bbox_embed"):
        tensors[f"{prefix}.3.layers.2.bias"] = torch.full((4,), 3.0)
    checkpoint = translate_checkpoint({"model": tensors}, "x")
    assert len({name.split(".")[2] for name in checkpoint.state if ".box_heads." in name}) == 6
    assert_same(translate_for("official", checkpoint.state, checkpoint.extras)[0], tensors)


@pytest.mark.parametrize("name", MMDET)
def test_mmdet_round_trip(name):
    tensors = mmdet(name)
    checkpoint = translate_checkpoint({"state_dict": tensors, "meta": {}}, name)
    assert checkpoint.origin == "mmdet" and not checkpoint.unknown
    back, aside = translate_for("mmdet", checkpoint.state, checkpoint.extras)
    assert_same(back, tensors)
    assert not aside


def test_mmdet_counters_of_batch_norms_come_back():
    tensors = mmdet("manifest_mmdet_grounding_dino_r50_scratch_8xb2_1x_coco")
    norms = [name for name in tensors if name.startswith("backbone.") and name.endswith("running_var")]
    tensors |= {name.replace("running_var", "num_batches_tracked"): torch.tensor(7) for name in norms}
    checkpoint = translate_checkpoint({"state_dict": tensors}, "x")
    assert not any("num_batches_tracked" in name for name in checkpoint.state)
    assert_same(translate_for("mmdet", checkpoint.state, checkpoint.extras)[0], tensors)


def test_mmdet_five_levels():
    state = translate_checkpoint(
        {"state_dict": mmdet("manifest_mmdet_mm_grounding_dino_swin-l_pretrain_all")}, "x"
    ).state
    assert state["backbone.norms.stage1.weight"].shape == (192,)
    assert state["input_projection.3.0.weight"].shape == (256, 1536, 1, 1)
    assert state["input_projection.4.0.weight"].shape == (256, 1536, 3, 3)
    assert state["query_selection.class_head.bias"].shape == (1,)


def test_fine_tuned_scales_of_mmdet_come_back():
    tensors = mmdet("manifest_mmdet_grounding_dino_swin-t_pretrain_obj365_goldg_cap4m")
    tensors |= {f"bbox_head.cls_branches.{i}.log_scale": torch.tensor([0.1 * i]) for i in range(7)}
    checkpoint = translate_checkpoint({"state_dict": tensors}, "x")
    assert checkpoint.state["query_selection.class_head.log_scale"] == pytest.approx(0.6)
    assert_same(translate_for("mmdet", checkpoint.state, checkpoint.extras)[0], tensors)


@pytest.mark.parametrize("name", [*OFFICIAL, *MMDET])
@pytest.mark.parametrize("through", ["official", "mmdet", "huggingface"])
def test_ours_through_every_origin(name, through):
    source = {"model": official(name)} if name in OFFICIAL else {"state_dict": mmdet(name)}
    ours = translate_checkpoint(source, name)
    if through == "huggingface" and "r50" in name:
        pytest.raises(ValueError, translate_for, through, ours.state, ours.extras)
        return
    if through == "official" and any("class_heads" in key for key in ours.state):
        with pytest.raises(ValueError, match="no name in the official format.*class_head"):
            translate_for(through, ours.state, ours.extras)
        return
    tensors, aside = translate_for(through, ours.state, ours.extras)
    back = translate_checkpoint({"model": tensors, "extras": aside}, name)
    assert back.origin == through and not back.unknown
    state = dict(back.state)
    if through == "mmdet" and name in OFFICIAL:  # mmdet has no shared heads
        copies = {key for key in state if re.search(r"box_heads\.[1-5]\.", key)}
        assert len(copies) == 30
        state = {key: value for key, value in state.items() if key not in copies}
    assert_same(state, ours.state)
    assert_same(back.extras, ours.extras)


@pytest.mark.slow
def test_closed_set_dino_gives_the_warm_start_all_but_text():
    """What the recipe takes is what it freezes, so that nothing new stays as it was drawn; BERT and text are new."""
    bert = {"NUM_LAYERS": 1, "HIDDEN_SIZE": 32, "FFN_DIM": 32, "NUM_HEADS": 2, "VOCABULARY_SIZE": 30522}
    opts = [item for key, value in bert.items() for item in (f"MODEL.TEXT_ENCODER.{key}", value)]
    cfg = load_cfg("r50_warm_start_dino", ["MODEL.DEVICE", "cpu", *opts])
    model = GeneralizedDINO(cfg)
    checkpoint = translate_checkpoint({"model": dino("r50_4scale")}, "checkpoint0011_4scale.pth")
    with pytest.raises(CheckpointError, match="MODEL.WARM_START_ON"):
        load_checkpoint_into(model, checkpoint)
    report = load_checkpoint_into(model, checkpoint, warm_start=cfg.MODEL.WARM_START_ON)
    state = model.state_dict()
    taken = set(report.taken)
    assert len(taken) == 533 and all(torch.equal(state[name], checkpoint.state[name]) for name in taken)
    text = r"text_encoder\.|.*\.(text_layer|fusion|text_attention|norm_text)\."
    assert report.new and all(re.match(text, name) for name in report.new)
    assert not any(re.match(text, name) for name in taken)
    closed = r"query_selection\.class_head\.|transformer_decoder\.class_heads\.0\."
    assert len(report.dropped) == 4 and all(re.match(closed, name) for name in report.dropped)
    assert report.misshapen == ("denoising.label_embedding.weight (92, 256) instead of (256, 256)",)
    freeze_parameters(cfg, model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    buffers = {name for name, _ in model.named_buffers()}
    assert frozen == taken - buffers


def test_official_and_mmdet_give_one_model():
    """The tables agree on what is what: a name maps to the same name of ours wherever the README pairs them."""
    shapes = {
        k: v.shape for k, v in translate_checkpoint({"model": official("manifest_swin_t_ogc")}, "x").state.items()
    }
    name = "manifest_mmdet_grounding_dino_swin-t_pretrain_obj365_goldg_cap4m"
    theirs = translate_checkpoint({"state_dict": mmdet(name)}, "x").state
    assert all(theirs[key].shape == shape for key, shape in shapes.items())
    assert {key for key in theirs if key not in shapes and "box_heads" not in key} == {
        "denoising.label_embedding.weight"
    }
