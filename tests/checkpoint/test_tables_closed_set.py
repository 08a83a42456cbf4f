"""Every name of DINO's and Mask DINO's published checkpoints is accounted for, and comes back bit for bit."""

import json
import re
from pathlib import Path

import grounding_dino.modeling  # noqa: F401  # fills the registries
from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.checkpoint.loading import load_checkpoint_into
from grounding_dino.checkpoint.origins import load_checkpoint, translate_checkpoint
from grounding_dino.checkpoint.saving import save_checkpoint, translate_for
from grounding_dino.model_zoo import load_cfg

import pytest
import torch
from detectron2.modeling import build_model

REFERENCE = Path(__file__).parents[1] / "reference"
DINO = ["convnext_xl_4scale", "r50_4scale", "r50_5scale", "swinl_4scale", "swinl_5scale"]
MASK_DINO = sorted(path.stem.removeprefix("manifest_") for path in (REFERENCE / "mask_dino").glob("manifest_*.json"))
MMDET = ["dino-4scale_r50_8xb2-12e_coco", "dino-5scale_swin-l_8xb2-12e_coco"]
HEAD = "sem_seg_head."


def distinct(shapes):
    """A tensor of each shape, no two alike; rows that can be permuted differ too, so that a wrong order shows."""
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        columns = torch.rand(shape[-1] if shape else ()) + number
        if len(shape) < 2:
            tensors[name] = columns
        elif len(shape) == 2 and not name.startswith("backbone"):
            tensors[name] = columns + torch.arange(shape[0])[:, None]
        else:
            tensors[name] = columns.expand(shape)
    return tensors


def with_aliases(folder, tensors):
    for alias, canonical in json.loads((REFERENCE / folder / "aliases.json").read_text()).items():
        tensors[alias] = tensors[canonical]
    return tensors


def manifest(folder, name):
    return distinct(json.loads((REFERENCE / folder / f"manifest_{name}.json").read_text()))


def dino(name):
    return with_aliases("dino", manifest("dino", name))


def mask_dino(name):
    """With the buffers that the authors' files hold besides the manifest."""
    tensors = with_aliases("mask_dino", manifest("mask_dino", name))
    classes = len(tensors[f"{HEAD}predictor.label_enc.weight"])
    tensors["criterion.empty_weight"] = torch.tensor([1.0] * classes + [0.1])
    for table in [key for key in tensors if key.endswith("relative_position_bias_table")]:
        tensors[table.replace("bias_table", "index")] = torch.arange(4).reshape(2, 2)
    if name == "cityscapes_semantic":  # trained with synchronised norms
        norms = [key for key in tensors if key.startswith("backbone.") and key.endswith("running_var")]
        tensors |= {key.replace("running_var", "num_batches_tracked"): torch.tensor(9) for key in norms}
    return tensors


def mmdet(name):
    return manifest("mmdet", f"mmdet_{name}")


def assert_same(a, b):
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())[:10]
    different = [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])]
    assert not different, different[:10]


@pytest.mark.parametrize(
    "origin, model, name, read",
    [
        *(("official", "dino", name, dino) for name in DINO),
        *(("official", "mask_dino", name, mask_dino) for name in MASK_DINO),
        *(("mmdet", "dino", name, mmdet) for name in MMDET),
    ],
)
def test_round_trip(origin, model, name, read):
    tensors = read(name)
    checkpoint = translate_checkpoint({"model": tensors}, name)
    assert (checkpoint.origin, checkpoint.model) == (origin, model)
    assert not checkpoint.unknown
    back, aside = translate_for(origin, checkpoint.state, checkpoint.extras)
    assert_same(back, tensors)
    assert not aside


CONFIGS = [
    ("convnext_xl_4scale_12ep", dino, "convnext_xl_4scale"),
    ("r50_4scale_12ep", dino, "r50_4scale"),
    ("r50_5scale_12ep", dino, "r50_5scale"),
    ("swin_l_4scale_12ep", dino, "swinl_4scale"),
    ("swin_l_5scale_12ep", dino, "swinl_5scale"),
    ("r50_instance", mask_dino, "r50_instance_2048"),
    ("r50_instance_hid1024", mask_dino, "r50_instance_hid1024"),
    ("r50_panoptic", mask_dino, "r50_panoptic"),
    ("swin_l_instance", mask_dino, "swinl_instance"),
    ("swin_l_panoptic", mask_dino, "swinl_panoptic"),
    ("ade20k/r50_semantic", mask_dino, "ade20k_semantic"),
    ("cityscapes/r50_semantic", mask_dino, "cityscapes_semantic"),
    ("mmdet_r50_4scale_12ep", mmdet, MMDET[0]),
    ("mmdet_swin_l_5scale_12ep", mmdet, MMDET[1]),
]


@pytest.mark.slow
@pytest.mark.parametrize("config, read, name", CONFIGS)
def test_through_the_model_of_the_configuration(config, read, name):
    """Strictly into the model, and from the model back to the same bits."""
    tensors = read(name)
    checkpoint = translate_checkpoint({"model": tensors}, name)
    model = build_model(load_cfg(config, ["MODEL.DEVICE", "cpu"]))
    report = load_checkpoint_into(model, checkpoint)
    assert not report.new and not report.dropped
    back, aside = translate_for(checkpoint.origin, model.state_dict(), checkpoint.extras)
    assert_same(back, tensors)
    assert not aside


@pytest.mark.parametrize("name", DINO)
def test_official_dino_has_one_head_of_each_kind(name):
    checkpoint = translate_checkpoint({"model": dino(name)}, name)
    assert {key.split(".")[2] for key in checkpoint.state if re.search(r"\.(box|class)_heads\.", key)} == {"0"}
    unused = {f"carried.official.convnext_norm0.{leaf}" for leaf in ("weight", "bias")}
    assert checkpoint.extras.keys() == (unused if "convnext" in name else set())


def test_a_finer_convnext_uses_all_its_norms():
    tensors = dino("convnext_xl_4scale")
    tensors["input_proj.0.0.weight"] = torch.rand(256, 256, 1, 1)
    checkpoint = translate_checkpoint({"model": tensors}, "x")
    assert not checkpoint.extras
    assert torch.equal(checkpoint.state["backbone.norms.s4.weight"], tensors["backbone.0.norm0.weight"])
    assert_same(translate_for("official", checkpoint.state, {})[0], tensors)


def test_dino_through_mmdets_names():
    """The authors' shared heads become one a layer there; nothing else changes."""
    ours = translate_checkpoint({"model": dino("r50_4scale")}, "x")
    tensors, aside = translate_for("mmdet", ours.state, ours.extras)
    assert not aside
    back = translate_checkpoint({"state_dict": tensors}, "x")
    assert (back.origin, back.model) == ("mmdet", "dino")
    copies = {key for key in back.state if re.search(r"(box|class)_heads\.[1-5]\.", key)}
    assert len(copies) == 5 * 8
    assert_same({key: value for key, value in back.state.items() if key not in copies}, ours.state)


def test_mmdet_numbers_norms_by_the_attentions_there_are():
    tensors = mmdet(MMDET[0])
    state = translate_checkpoint({"state_dict": tensors}, "x").state
    for number, norm in enumerate(("norm_self", "norm_cross", "norm_ffn")):
        expected = tensors[f"decoder.layers.4.norms.{number}.weight"]
        assert torch.equal(state[f"transformer_decoder.layers.4.{norm}.weight"], expected)


# ------------------------------------------------------------------------------------------- Mask DINO's levels


@pytest.mark.parametrize("name", MASK_DINO)
def test_levels_are_finest_first(name):
    state = translate_checkpoint({"model": mask_dino(name)}, name).state
    levels = len(state["pixel_decoder.level_embed"])
    channels = [state[f"input_projection.{i}.0.weight"].shape[1] for i in range(levels)]
    assert channels == sorted(channels)
    assert state["input_projection.mask_map.0.weight"].shape[1] == min(channels) / (1 if "swin" in name else 2)


@pytest.mark.parametrize("name, reversed_part", [("r50_instance_2048", "decoder"), ("r50_instance_hid1024", "encoder")])
def test_rows_of_levels(name, reversed_part):
    """low2high: their decoder sees the coarsest level first; high2low: their encoder does."""
    theirs = mask_dino(name)
    ours = translate_checkpoint({"model": theirs}, name).state
    levels = len(ours["pixel_decoder.level_embed"])
    embed = theirs[f"{HEAD}pixel_decoder.transformer.level_embed"]
    expected = embed.flip(0) if reversed_part == "encoder" else embed
    assert torch.equal(ours["pixel_decoder.level_embed"], expected)
    pairs = {
        "encoder": (
            "pixel_decoder.layers.2.image_layer.self_attention",
            "pixel_decoder.transformer.encoder.layers.2.self_attn",
        ),
        "decoder": ("transformer_decoder.layers.2.cross_attention", "predictor.decoder.layers.2.cross_attn"),
    }
    for part, (our_name, their_name) in pairs.items():
        for leaf in ("sampling_offsets.weight", "attention_weights.bias"):
            a, b = ours[f"{our_name}.{leaf}"], theirs[f"{HEAD}{their_name}.{leaf}"]
            if part != reversed_part:
                assert torch.equal(a, b)
                continue
            rows = len(a) // (8 * levels)  # of one head and level
            for head in range(8):
                for level in range(levels):
                    mine, other = ((head * levels + place) * rows for place in (level, levels - 1 - level))
                    assert torch.equal(a[mine : mine + rows], b[other : other + rows])


def test_extra_levels_stay_last_in_the_list_of_projections():
    """Four levels `high2low`, which no released model has: the extra one is not reversed among the projections."""
    tensors = mask_dino("r50_instance_2048")
    names = [f"{HEAD}pixel_decoder.input_proj.{i}.0.weight" for i in (0, 2)]
    tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]
    state = translate_checkpoint({"model": tensors}, "x").state
    shapes = [tuple(state[f"input_projection.{i}.0.weight"].shape[1:]) for i in range(4)]
    assert shapes == [(512, 1, 1), (1024, 1, 1), (2048, 1, 1), (2048, 3, 3)]
    embed = tensors[f"{HEAD}pixel_decoder.transformer.level_embed"]
    assert torch.equal(state["pixel_decoder.level_embed"], embed.flip(0))


def test_copies_that_differ_are_refused():
    tensors = mask_dino("r50_panoptic")
    tensors[f"{HEAD}predictor.bbox_embed.3.layers.0.bias"] = torch.ones(256)
    with pytest.raises(CheckpointError, match=r"bbox_embed\.3\.layers\.0\.bias.*copies of one another differ"):
        translate_checkpoint({"model": tensors}, "x")


def test_semantic_models_have_learned_queries():
    state = translate_checkpoint({"model": mask_dino("ade20k_semantic")}, "x").state
    assert state["query_selection.content.weight"].shape == (100, 256)
    assert state["query_selection.reference_logits.weight"].shape == (100, 4)
    assert state["transformer_decoder.class_heads.0.weight"].shape == (151, 256)
    assert state["denoising.label_embedding.weight"].shape == (150, 256)


# ------------------------------------------------------------------------------------------- files


def test_through_a_file_of_ours(tmp_path):
    """The weights of the authors' cross-entropy lie beside the model, and come back."""
    name = "r50_instance_hid1024"
    small = {key: value for key, value in mask_dino(name).items() if not key.startswith("backbone.res")}
    checkpoint = translate_checkpoint({"model": small}, name)
    assert "carried.official.empty_weight" in checkpoint.extras
    save_checkpoint(str(tmp_path / "ours.safetensors"), checkpoint.state, checkpoint.extras)
    read = load_checkpoint(str(tmp_path / "ours.safetensors"))
    assert (read.origin, read.model) == ("ours", "mask_dino")
    save_checkpoint(str(tmp_path / "theirs.pth"), read.state, read.extras, to="official")
    content = torch.load(tmp_path / "theirs.pth", weights_only=True)
    assert content.keys() == {"model"}
    assert_same(content["model"], small)


def test_formats_of_a_model():
    state = translate_checkpoint({"model": mask_dino("r50_panoptic")}, "x").state
    with pytest.raises(CheckpointError, match=r"'huggingface' of mask_dino.*\['official', 'ours'\]"):
        translate_for("huggingface", state, {})
