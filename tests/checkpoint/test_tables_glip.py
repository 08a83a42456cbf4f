"""Every name of GLIP's published checkpoints is accounted for, and comes back bit for bit."""

import json
import os
import re
from pathlib import Path

import grounding_dino.modeling  # noqa: F401  # fills the registries
from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.checkpoint.loading import load_checkpoint_into, load_weights
from grounding_dino.checkpoint.origins import load_checkpoint, translate_checkpoint
from grounding_dino.checkpoint.partial import load_backbone_weights
from grounding_dino.checkpoint.report import part_of
from grounding_dino.checkpoint.saving import save_checkpoint, translate_for
from grounding_dino.cli.convert_weights import main
from grounding_dino.model_zoo import load_cfg

import pytest
import torch
from detectron2.modeling import build_model

REFERENCE = Path(__file__).parents[1] / "reference" / "glip"
PUBLISHED = [
    ("glip_t_a", "mmdet", "mmdet_glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365"),
    ("glip_t_a", "official", "official_glip_swin-t_a"),
    ("glip_t_c", "mmdet", "mmdet_glip_atss_swin-t_c_fpn_dyhead_pretrain_obj365-goldg"),
    ("glip_t_c", "official", "official_glip_swin-t_c_full"),
    ("glip_l", "mmdet", "mmdet_glip_atss_swin-l_fpn_dyhead_pretrain_mixeddata"),
    ("glip_l", "official", "official_glip_swin-l"),
]
UNREAD = {"official": {"carried.official.cls_logits.weight", "carried.official.cls_logits.bias"}, "mmdet": set()}
FORMATS = ["official", "mmdet"]


def assert_same(a, b):
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())[:10]
    different = [name for name in a if a[name].dtype != b[name].dtype or a[name].shape != b[name].shape]
    assert not different, different[:10]
    different = [name for name in a if not a[name].is_meta and not torch.equal(a[name], b[name])]
    assert not different, different[:10]


def through_the_model(config, origin, name, tensors, device="cpu"):
    """Strictly into the model of the configuration, and from it back to the same tensors."""
    checkpoint = translate_checkpoint({"model": tensors}, name)
    assert (checkpoint.origin, checkpoint.model) == (origin, "glip")
    assert not checkpoint.unknown and checkpoint.extras.keys() == UNREAD[origin]
    model = build_model(load_cfg(config, ["MODEL.DEVICE", device]))
    report = load_checkpoint_into(model, checkpoint)
    assert set(report.taken) == set(model.state_dict()) and not report.dropped
    back, aside = translate_for(origin, model.state_dict(), checkpoint.extras)
    assert_same(back, tensors)
    assert not aside


@pytest.mark.parametrize("config, origin, name", PUBLISHED)
def test_names_and_shapes_fit_the_configuration(config, origin, name, weightless):
    shapes = json.loads((REFERENCE / f"manifest_{name}.json").read_text())
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    through_the_model(config, origin, name, tensors, "meta")


@pytest.mark.slow
@pytest.mark.parametrize("config, origin, name", PUBLISHED)
def test_weights_come_back_from_the_model(config, origin, name, recipe_weights):
    through_the_model(config, origin, name, recipe_weights("glip", f"manifest_{name}.json"))


# ------------------------------------------------------------------------------------------- a small model


def build(cfg, *opts):
    cfg = cfg.clone()
    cfg.merge_from_list(["MODEL.DENSE_HEAD.NUM_BLOCKS", 2, *opts])
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():  # no two are equal, nor are the numbers in them
            parameter.copy_(torch.randn(parameter.shape))
    return model


@pytest.fixture
def model(tiny_glip_cfg):
    torch.manual_seed(0)
    return build(tiny_glip_cfg)


@pytest.mark.parametrize("to, file", [("official", "a.pth"), ("mmdet", "a.pth"), ("ours", "a.safetensors")])
@pytest.mark.parametrize("fusion", [True, False])
def test_exact_through_files(tmp_path, tiny_glip_cfg, to, file, fusion):
    opts = ["MODEL.DENSE_HEAD.TEXT_FUSION.ENABLED_ON", fusion]
    source, other = (build(tiny_glip_cfg, *opts) for _ in range(2))
    save_checkpoint(str(tmp_path / file), source.state_dict(), to=to)
    report = load_weights(other, tmp_path / file)
    assert report.origin == to and not report.new and not report.dropped
    assert_same(other.state_dict(), source.state_dict())
    if to == "official":
        content = torch.load(tmp_path / file, weights_only=True)
        assert content.keys() == {"model"} and all(name.startswith("module.") for name in content["model"])
    if to == "mmdet":
        assert torch.load(tmp_path / file, weights_only=True).keys() == {"state_dict"}


@pytest.mark.parametrize("through", FORMATS)
def test_what_the_authors_files_hold_besides_comes_back(tmp_path, model, through):
    theirs, _ = translate_for("official", model.state_dict(), {})
    theirs |= {f"rpn.anchor_generator.cell_anchors.{i}": torch.rand(1, 4) for i in range(5)}
    theirs |= {f"rpn.head.cls_logits.{leaf}": torch.rand(3) for leaf in ("weight", "bias")}
    theirs |= {"language_backbone.body.model.pooler.dense.bias": torch.rand(16)}
    theirs |= {"language_backbone.body.model.embeddings.position_ids": torch.arange(512)[None]}
    theirs |= {"rpn.resizer.fc.weight": torch.rand(4, 16), "rpn.resizer.layer_norm.bias": torch.rand(4)}
    theirs |= {"backbone.body.layers.0.blocks.0.attn.relative_position_index": torch.arange(4).reshape(2, 2)}
    torch.save({"model": {f"module.{k}": v for k, v in theirs.items()}, "iteration": 3}, tmp_path / "released.pth")
    paths = [str(tmp_path / name) for name in ("released.pth", "between.pth", "back.pth")]
    assert main(["--to", through, *paths[:2]]) == 0
    assert main(["--to", "official", *paths[1:]]) == 0
    back = torch.load(paths[2], weights_only=True)["model"]
    assert_same({name.removeprefix("module."): value for name, value in back.items()}, theirs)
    assert not load_weights(model, paths[0]).dropped


def test_where_the_tensors_go(model):
    """Pairs of names that the README of the reference gives, and what is laid out differently."""
    ours = model.state_dict()
    theirs = {origin: translate_for(origin, ours, {})[0] for origin in FORMATS}
    same = {
        "tower.blocks.1.fusion.gamma_text": ("rpn.head.dyhead_tower.3.b_attn.gamma_l",) * 2,
        "tower.blocks.1.fusion.attention.value_image.bias": ("rpn.head.dyhead_tower.3.b_attn.attn.values_v_proj.bias",)
        * 2,
        "tower.blocks.1.text_layer.norm1.bias": ("rpn.head.dyhead_tower.4.attention.output.LayerNorm.bias",) * 2,
        "tower.blocks.1.text_layer.norm2.bias": ("rpn.head.dyhead_tower.4.output.LayerNorm.bias",) * 2,
        "tower.blocks.1.convolution.branches.2.convolution.bias": (
            "rpn.head.dyhead_tower.5.DyConv.2.conv.bias",
            "rpn.head.dyhead_tower.5.dyconvs.2.conv.bias",
        ),
        "tower.blocks.0.convolution.offset.bias": ("rpn.head.dyhead_tower.2.offset.bias",) * 2,
        "head.text_bias": ("rpn.head.bias_lang",) * 2,
        "head.bias": ("rpn.head.bias0",) * 2,
        "pyramid.inner_blocks.2.0.bias": ("backbone.fpn.fpn_inner4.bias", "neck.lateral_convs.2.conv.bias"),
        "pyramid.layer_blocks.0.0.bias": ("backbone.fpn.fpn_layer2.bias", "neck.fpn_convs.0.conv.bias"),
        "pyramid.extra_blocks.p7.bias": ("backbone.fpn.top_blocks.p7.bias", "neck.fpn_convs.4.conv.bias"),
        "backbone.norms.stage2.bias": ("backbone.body.norm1.bias", "backbone.norm1.bias"),
    }
    for name, (official, mmdet) in same.items():
        assert torch.equal(ours[name], theirs["official"][official]), name
        assert torch.equal(ours[name], theirs["mmdet"][mmdet.replace("rpn.head.", "bbox_head.head.")]), name
    for origin, prefix, weight in (("official", "rpn.head.", "AttnConv"), ("mmdet", "bbox_head.head.", "attnconv")):
        tower = f"{prefix}dyhead_tower."
        rows = [theirs[origin][f"{tower}1.attention.self.{word}.weight"] for word in ("query", "key", "value")]
        assert torch.equal(ours["tower.blocks.0.text_layer.self_attention.in_proj.weight"], torch.cat(rows))
        kernel = theirs[origin][f"{tower}5.{weight}.1.weight"]
        assert kernel.shape == (1, 32, 1, 1)
        assert torch.equal(ours["tower.blocks.1.convolution.scale_attention.weight"], kernel[:, :, 0, 0])
        scale = theirs[origin][f"{prefix}scales.3.scale"]
        assert scale.shape == ((1,) if origin == "official" else ())
        assert scale.item() == ours["head.level_scales"][3].item()


def test_without_fusion_a_block_is_one_module(tiny_glip_cfg):
    model = build(tiny_glip_cfg, "MODEL.DENSE_HEAD.TEXT_FUSION.ENABLED_ON", False)
    theirs = translate_for("official", model.state_dict(), {})[0]
    assert {int(match[1]) for name in theirs if (match := re.match(r"rpn\.head\.dyhead_tower\.(\d+)", name))} == {0, 1}
    assert torch.equal(
        theirs["rpn.head.dyhead_tower.1.offset.bias"], model.tower.blocks[1].convolution.offset.bias.detach()
    )


def test_merging_of_patches_is_permuted_in_mmdet(model):
    ours = model.state_dict()["backbone.layers.0.downsample.norm.weight"]
    theirs = translate_for("mmdet", model.state_dict(), {})[0]["backbone.stages.0.downsample.norm.weight"]
    channels = len(ours) // 4
    for channel in range(channels):
        for theirs_place, our_place in enumerate((0, 2, 1, 3)):  # (y, x) row by row there, column by column in ours
            assert theirs[4 * channel + theirs_place] == ours[our_place * channels + channel]


def test_converted_files_of_mmdet_hold_scales_with_an_axis(model):
    theirs = translate_for("mmdet", model.state_dict(), {})[0]
    for level in range(5):
        theirs[f"bbox_head.head.scales.{level}.scale"] = torch.tensor([2.0 + level])
    load_checkpoint_into(model, translate_checkpoint(theirs, "converted.pth"))
    assert model.head.level_scales.tolist() == [2, 3, 4, 5, 6]


def test_a_far_number_of_a_module_is_one_block():
    """A file with an absurd number costs no more than any other."""
    names = (
        "rpn.head.dyhead_tower.99999999999.offset.bias",
        "language_backbone.body.x",
        "backbone.fpn.fpn_inner2.bias",
    )
    checkpoint = translate_checkpoint({"model": {name: torch.ones(1) for name in names}}, "x")
    assert "tower.blocks.99999999999.convolution.offset.bias" in checkpoint.state


# ------------------------------------------------------------------------------------------- prompt vectors


def test_prompt_vectors_are_the_authors_tunable_linear(tmp_path, tiny_glip_cfg):
    tuned = build(tiny_glip_cfg, "MODEL.DENSE_HEAD.PROMPT_VECTORS", 20)
    path = str(tmp_path / "tuned.pth")
    save_checkpoint(path, tuned.state_dict(), to="official")
    theirs = torch.load(path, weights_only=True)["model"]["module.rpn.tunable_linear.weight"]
    assert torch.equal(theirs, tuned.prompt_vectors.weight.detach())
    other = build(tiny_glip_cfg, "MODEL.DENSE_HEAD.PROMPT_VECTORS", 20)
    load_weights(other, path)
    assert_same(other.state_dict(), tuned.state_dict())
    with pytest.raises(CheckpointError, match=r"unexpected: prompt_vectors\.weight"):
        load_weights(build(tiny_glip_cfg), path)
    with pytest.raises(CheckpointError, match="no name in the mmdet format.*prompt_vectors.weight"):
        translate_for("mmdet", tuned.state_dict(), {})


@pytest.mark.parametrize("to", FORMATS)
def test_a_model_to_tune_starts_from_a_file_without_vectors(tmp_path, tiny_glip_cfg, model, to):
    """They start as zeros, which change nothing, so the load is a strict one."""
    path = str(tmp_path / "a.pth")
    save_checkpoint(path, model.state_dict(), to=to)
    other = build(tiny_glip_cfg, "MODEL.DENSE_HEAD.PROMPT_VECTORS", 20)
    assert load_weights(other, path).new == ("prompt_vectors.weight",)
    assert not other.prompt_vectors.weight.any()


# ------------------------------------------------------------------------------------------- what does not fit


def test_hugging_face_has_no_glip(tmp_path, model, capsys):
    save_checkpoint(str(tmp_path / "a.pth"), model.state_dict(), to="mmdet")
    assert main(["--to", "huggingface", str(tmp_path / "a.pth"), str(tmp_path / "folder")]) == 1
    assert "no format 'huggingface' of glip is known here; choose from ['official', 'mmdet', 'ours']" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "folder").exists()


def test_another_backbone_has_no_name(model):
    state = {
        ("backbone.model" if name == "backbone.norms.stage2.bias" else name): value
        for name, value in model.state_dict().items()
    }
    with pytest.raises(CheckpointError, match="no name in the official format.*backbone.model.*published with"):
        translate_for("official", state, {})


@pytest.mark.parametrize("to", [*FORMATS, "ours"])
def test_glip_and_grounding_dino_do_not_take_each_others_files(tmp_path, tiny_glip, tiny_model, to):
    """The errors say what the file is."""
    save_checkpoint(str(tmp_path / "glip.pth"), tiny_glip.state_dict(), to=to)
    save_checkpoint(str(tmp_path / "dino.pth"), tiny_model.state_dict())
    with pytest.raises(CheckpointError, match="does not fit the model(.|\n)*the checkpoint holds GLIP, a Swin of 8"):
        load_weights(tiny_model, tmp_path / "glip.pth")
    with pytest.raises(CheckpointError, match="does not fit the model(.|\n)*the checkpoint holds Grounding DINO, "):
        load_weights(tiny_glip, tmp_path / "dino.pth")


def test_a_file_that_lacks_a_part_of_the_text_layer(model):
    theirs = translate_for("official", model.state_dict(), {})[0]
    del theirs["rpn.head.dyhead_tower.4.attention.self.key.bias"]
    with pytest.raises(CheckpointError, match=r"lacks \['rpn.head.dyhead_tower.4.attention.self.key.bias'\]"):
        translate_checkpoint({"model": theirs}, "x")


def test_code_in_a_file_is_not_run(tmp_path, model):
    class Code:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/ran",))

    theirs = translate_for("official", model.state_dict(), {})[0]
    torch.save({"model": theirs, "optimizer": Code()}, tmp_path / "a.pth")
    checkpoint = load_checkpoint(str(tmp_path / "a.pth"))
    assert not (tmp_path / "ran").exists()
    assert_same(checkpoint.state, model.state_dict())


# ------------------------------------------------------------------------------------------- parts of other models


def test_warm_start_from_grounding_dino(tmp_path, tiny_cfg, tiny_glip_cfg):
    """Backbone and BERT are taken; pyramid, tower and head are new."""
    shared = ["SWIN", "TEXT_ENCODER"]
    for key in shared:
        tiny_cfg.MODEL[key] = tiny_glip_cfg.MODEL[key].clone()
    tiny_cfg.MODEL.TEXT_ENCODER.PROJECTION_ON = tiny_cfg.MODEL.TEXT_ENCODER.SUB_SENTENCE_ON = True
    source, target = build_model(tiny_cfg), build(tiny_glip_cfg)
    save_checkpoint(str(tmp_path / "source.pth"), source.state_dict())
    report = load_weights(target, tmp_path / "source.pth", warm_start=True)
    assert {part_of(name) for name in report.taken} == {"backbone", "text_encoder.bert"}
    assert {part_of(name).split(".")[0] for name in report.new} == {"pyramid", "tower", "head"}
    assert not report.misshapen
    for part in ("backbone", "text_encoder.bert"):
        assert_same(target.get_submodule(part).state_dict(), source.get_submodule(part).state_dict())


@pytest.mark.parametrize("to", FORMATS)
def test_the_backbone_alone(tmp_path, tiny_glip_cfg, model, to):
    save_checkpoint(str(tmp_path / "a.pth"), model.state_dict(), to=to)
    other = build(tiny_glip_cfg)
    report = load_backbone_weights(other.backbone, tmp_path / "a.pth")
    assert report.origin == to and not report.new and not report.dropped
    assert_same(other.backbone.state_dict(), model.backbone.state_dict())
