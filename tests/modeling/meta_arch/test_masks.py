"""Models with masks: losses and gradients, denoising, batches, half precision, results of every size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.structures import DecoderOutput

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, PolygonMasks
from torch import nn

MakePicture = Callable[..., dict[str, Any]]
BOXES = [[5.0, 5.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]]
KINDS = ("class", "l1", "giou", "mask", "dice")


def varied(model: nn.Module) -> nn.Module:
    """Heads that begin at zero, and queries that begin alike, would hide the differences that tests look for."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "box_head" in name or "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                parameter.normal_(std=0.2)
            elif "mask_head" in name or "class_heads" in name or name.startswith("pixel_decoder.mask_features"):
                parameter.mul_(3.0)
    return model


@pytest.fixture
def model(tiny_mask_cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    return varied(build_model(tiny_mask_cfg)).eval()


@pytest.fixture
def masked(annotated: MakePicture) -> MakePicture:
    """`masked(height, width, boxes, classes, **rest)`: one input whose masks are its boxes."""

    def make(height: int, width: int, boxes: list[list[float]], classes: list[int], /, **rest: Any) -> dict[str, Any]:
        sample = annotated(height, width, boxes, classes, **rest)
        masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes):
            mask[int(y1) : int(y2), int(x1) : int(x2)] = True
        sample["instances"].gt_masks = BitMasks(masks)
        return sample

    return make


@pytest.fixture
def batch(masked: MakePicture) -> list[dict[str, Any]]:
    """Two objects, none, one."""
    return [
        masked(64, 80, BOXES, [1, 0], seed=1),
        masked(48, 60, [], [], seed=2),
        masked(60, 44, BOXES[:1], [4], seed=3),
    ]


def without_gradient(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_losses_of_every_stage(model: nn.Module, tiny_mask_cfg: CfgNode, batch: list[dict[str, Any]]) -> None:
    layers = tiny_mask_cfg.MODEL.TRANSFORMER_DECODER.NUM_LAYERS
    losses = model.train()(batch)
    of_layers = ["", *(f"_{i}" for i in range(layers))]  # the prediction before the first layer is one of them
    stages = [*of_layers, "_encoder", *(f"_denoising{suffix}" for suffix in of_layers)]
    assert set(losses) == {f"loss_{kind}{stage}" for kind in KINDS for stage in stages}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert without_gradient(model) == []
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.transformer_decoder.mask_head.layers[-1].weight.grad.abs().sum() > 0


def test_every_parameter_has_a_gradient_without_targets(model: nn.Module, masked: MakePicture) -> None:
    losses = model.train()([masked(64, 80, [], [], seed=1), masked(48, 60, [], [], seed=2)])
    assert all(loss == 0 for name, loss in losses.items() if "class" not in name or "denoising" in name)
    sum(losses.values()).backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize("box", [[7.0, 9.0, 8.0, 10.0], [0.0, 0.0, 80.0, 64.0]], ids=["one pixel", "all pixels"])
def test_extreme_masks(model: nn.Module, masked: MakePicture, box: list[float]) -> None:
    losses = model.train()([masked(64, 80, [box], [0])])
    assert all(loss.isfinite() for loss in losses.values())


def test_an_empty_mask(model: nn.Module, masked: MakePicture) -> None:
    sample = masked(64, 80, BOXES, [0, 1])
    sample["instances"].gt_masks.tensor[0] = False
    assert all(loss.isfinite() for loss in model.train()([sample]).values())


def test_polygons_are_masks_too(model: nn.Module, masked: MakePicture) -> None:
    sample = masked(64, 80, BOXES, [0, 1])
    (prompt,) = model.prompts_of(sample)
    bits = model.target_of(sample, prompt, (64, 80), 0, (64, 80)).masks
    corners = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in BOXES]
    sample["instances"].gt_masks = PolygonMasks(corners)
    polygons = model.target_of(sample, prompt, (64, 80), 0, (64, 80)).masks
    assert bits.dtype == polygons.dtype == torch.bool and (bits ^ polygons).sum() <= 4 * 64


def test_masks_that_are_not_finite(model: nn.Module, masked: MakePicture) -> None:
    with torch.no_grad():
        model.pixel_decoder.mask_features.projection.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the predicted logits, boxes or masks"):
        model.train()([masked(64, 80, BOXES, [0, 1])])


def test_objects_without_masks(model: nn.Module, annotated: MakePicture) -> None:
    with pytest.raises(ValueError, match="the picture with image_id 3 has objects without masks"):
        model.train()([annotated(64, 80, BOXES, [0, 1], image_id=3)])


def test_masks_of_another_size(model: nn.Module, masked: MakePicture) -> None:
    sample = masked(64, 80, BOXES, [0, 1])
    sample["instances"].gt_masks = BitMasks(torch.ones(2, 32, 80, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"masks of a picture are of \(32, 80\) pixels, but its image of \(64, 80\)"):
        model.train()([sample])


@pytest.mark.parametrize("contrastive", [True, False])
def test_noised_ground_truth_does_not_reach_the_matching_queries(
    tiny_mask_cfg: CfgNode, masked: MakePicture, contrastive: bool
) -> None:
    """Other boxes, labels and masks for the denoising queries; the matching queries' outputs stay bit for bit."""
    denoising = tiny_mask_cfg.MODEL.DENOISING
    denoising.CONTRASTIVE_ON, denoising.BOX_NOISE = contrastive, "corners" if contrastive else "centre_and_size"
    model = varied(build_model(tiny_mask_cfg))
    outputs: list[DecoderOutput] = []
    model.transformer_decoder.register_forward_hook(lambda module, args, output: outputs.append(output))
    others = [[40.0, 2.0, 70.0, 20.0], [1.0, 30.0, 79.0, 63.0]]
    for boxes, classes in ((BOXES, [0, 1]), (others, [3, 3])):
        torch.manual_seed(0)
        with torch.no_grad():
            model.train()([masked(64, 80, boxes, classes)])
    first, second = outputs
    assert (first.denoising[-1].pred_boxes - second.denoising[-1].pred_boxes).abs().max() > 1e-3
    assert (first.denoising[-1].pred_masks - second.denoising[-1].pred_masks).abs().max() > 1e-3
    for one, other in zip(first.layers, second.layers, strict=True):
        assert torch.equal(one.pred_boxes, other.pred_boxes)
        assert torch.equal(one.pred_logits, other.pred_logits)
        assert torch.equal(one.pred_masks, other.pred_masks)


def test_more_objects_than_denoising_queries(model: nn.Module, masked: MakePicture) -> None:
    """Published Mask DINO then trains without denoising."""
    boxes = [[float(i), float(i), i + 20.0, i + 30.0] for i in range(8)]
    model.denoising.num_queries, model.denoising.min_groups, model.denoising.num_groups = 6, 0, 0
    losses = model.train()([masked(64, 80, boxes, [0] * 8)])
    assert all(value == 0 for name, value in losses.items() if "denoising" in name)
    sum(losses.values()).backward()
    assert without_gradient(model) == []


@torch.no_grad()
@pytest.mark.parametrize("padding_counts", [False, True])
@pytest.mark.parametrize("box_init", ["no", "mask2box", "bitmask"])
@pytest.mark.parametrize(
    "sizes", [[(64, 96), (70, 51), (96, 64), (66, 77)], [(65, 65), (69, 69)]], ids=["all levels", "masks alone"]
)
def test_results_do_not_depend_on_the_batch(
    tiny_mask_cfg: CfgNode, picture: MakePicture, sizes: list[tuple[int, int]], box_init: str, padding_counts: bool
) -> None:
    """Pictures of 65 and 69 pixels differ in the map of stride 4, not in those of 8 and more."""
    tiny_mask_cfg.MODEL.QUERY_SELECTION.BOX_INIT = box_init
    tiny_mask_cfg.MODEL.PADDING_MASK_ON = not padding_counts
    tiny_mask_cfg.MODEL.SIZE_DIVISIBILITY = 32
    tiny_mask_cfg.TEST.OBJECT_MASK_THRESHOLD = 0.0
    tiny_mask_cfg.TEST.OVERLAP_THRESHOLD = 0.0
    model = varied(build_model(tiny_mask_cfg)).eval()
    inputs = [picture(h, w, seed=seed) for seed, (h, w) in enumerate(sizes)]
    for sample, together in zip(inputs, model(inputs)):
        (alone,) = model([sample])
        assert set(alone) == {"instances", "panoptic_seg", "sem_seg"}
        torch.testing.assert_close(alone["instances"].scores, together["instances"].scores, atol=1e-3, rtol=0)
        torch.testing.assert_close(alone["sem_seg"], together["sem_seg"], atol=1e-3, rtol=1e-3)
        areas = [found["instances"].pred_masks.sum(dim=(1, 2)) for found in (alone, together)]
        assert (areas[0] - areas[1]).abs().float().mean() < 2
        differing = (alone["panoptic_seg"][0] != together["panoptic_seg"][0]).float().mean()
        assert differing < 0.01


@torch.no_grad()
def test_padding_before_the_backbone_is_as_in_training(tiny_mask_cfg: CfgNode, picture: MakePicture) -> None:
    tiny_mask_cfg.MODEL.PADDING_MASK_ON = tiny_mask_cfg.MODEL.PAD_BEFORE_BACKBONE_ON = True
    model = varied(build_model(tiny_mask_cfg)).eval()
    images = model.preprocess_image([picture(64, 96, seed=1), picture(70, 51, seed=2)])
    tested, _ = model.pixel_decoder(model.extract_features(images), None)
    trained, _ = model.train().pixel_decoder(model.extract_features(images), None)
    assert torch.equal(tested.mask_features, trained.mask_features)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (5, 40), (33, 3)])
def test_pictures_smaller_than_a_stride(model: nn.Module, picture: MakePicture, size: tuple[int, int]) -> None:
    (found,) = model([picture(*size)])
    assert found["instances"].pred_masks.shape[1:] == size
    assert found["sem_seg"].shape[1:] == size and found["panoptic_seg"][0].shape == size


@torch.no_grad()
def test_output_of_another_size(model: nn.Module, picture: MakePicture) -> None:
    (found,) = model([{**picture(64, 80), "height": 40, "width": 100}])
    assert found["instances"].image_size == (40, 100)
    assert found["instances"].pred_masks.shape[1:] == (40, 100) and found["sem_seg"].shape[1:] == (40, 100)


def test_bfloat16_autocast(model: nn.Module, batch: list[dict[str, Any]]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(batch)
        with torch.no_grad():
            (found, *_) = model.eval()([{"image": batch[0]["image"]}])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert without_gradient(model) == []
    assert found["instances"].scores.isfinite().all() and found["sem_seg"].isfinite().all()


@torch.no_grad()
def test_half_weights(model: nn.Module, picture: MakePicture) -> None:
    (found,) = model.to(torch.bfloat16)([picture(64, 80)])
    assert found["instances"].scores.isfinite().all() and found["instances"].pred_masks.dtype == torch.bool


@pytest.fixture
def grounded_cfg(tiny_cfg: CfgNode) -> CfgNode:
    """Text and masks in one model."""
    tiny_cfg.MODEL.MASK_ON = True
    tiny_cfg.MODEL.SWIN.OUT_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    tiny_cfg.MODEL.MASK_HEAD.IN_FEATURE = "stage1"
    return tiny_cfg


def test_grounded_masks(grounded_cfg: CfgNode, masked: MakePicture) -> None:
    """Masks of what the categories name."""
    model = varied(build_model(grounded_cfg)).train()
    losses = model([masked(64, 80, BOXES, [1, 0], categories=["cat", "red dog"])])
    assert {"loss_mask", "loss_dice_0", "loss_mask_denoising"} <= set(losses)
    assert "loss_mask_encoder" not in losses  # its proposals have heads of their own, without masks
    sum(losses.values()).backward()
    assert without_gradient(model) == []
    with torch.no_grad():
        found = model.eval()([masked(64, 80, BOXES, [1, 0], categories=["cat", "red dog"])])[0]["instances"]
        captioned = model([masked(64, 80, BOXES, [1, 0], caption="a red dog")])[0]["instances"]
    assert found.pred_masks.shape == (len(found), 64, 80) and captioned.pred_masks.shape == (len(captioned), 64, 80)


@torch.no_grad()
def test_grounded_masks_of_several_prompts(grounded_cfg: CfgNode, picture: MakePicture) -> None:
    """Candidates of all prompts have masks too, but encoded: a long list of names would take gigabytes."""
    grounded_cfg.TEST.CATEGORIES_PER_PROMPT = 2
    grounded_cfg.TEST.DETECTIONS_PER_IMAGE = 10
    model = varied(build_model(grounded_cfg)).eval()
    (found,) = model([picture(64, 80, categories=["cat", "red dog", "bird", "cow", "pig"])])
    instances, candidates = found["instances"], found["candidates"]
    assert (len(instances), len(candidates)) == (10, 30) and not candidates.has("pred_masks")
    assert torch.equal(instances.pred_masks, candidates.pred_masks_rle[:10].decode())
    assert instances.pred_masks.any() and candidates.pred_classes.unique().tolist() == [0, 1, 2, 3, 4]


def test_a_mask_head_needs_a_map_of_stride_4(tiny_mask_cfg: CfgNode) -> None:
    tiny_mask_cfg.MODEL.MASK_HEAD.IN_FEATURE = "stage2"
    with pytest.raises(ValueError, match=r"MODEL.MASK_HEAD.IN_FEATURE names \['stage2'\], a map of stride 4, but"):
        build_model(tiny_mask_cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("QUERY_SELECTION.BOX_INIT", "mask", "unknown MODEL.QUERY_SELECTION.BOX_INIT|BOX_INIT 'mask' needs masks"),
        ("QUERY_SELECTION.CONTENT", "zero", "CONTENT 'zero'"),
        ("QUERY_SELECTION.NAME", "Best", "NAME 'Best'"),
        ("LOSS.CLASS", "hinge", "unknown MODEL.LOSS.CLASS 'hinge'"),
        ("DENOISING.BOX_NOISE", "all", "BOX_NOISE 'all'"),
        ("CLASS_HEAD.NUM_CLASSES", 0, "NUM_CLASSES is 0"),
        ("CLASS_HEAD.CATEGORY_IDS", [1, 7], "CATEGORY_IDS has 2 entries from 1 to 7"),
        ("CLASS_HEAD.NAME", "TokenContrast", "'TokenContrast', which compares with text, but MODEL.TEXT_ENCODER.NAME"),
        ("DENOISING.NUM_LABELS", 4, "NUM_LABELS is 4, but labels run to column 4 .*; set it to 5"),
        ("LOSS.OVERSAMPLE_RATIO", 0.5, "OVERSAMPLE_RATIO 0.5 and IMPORTANCE_SAMPLE_RATIO 0.75"),
        ("LOSS.NUM_POINTS", 0, "NUM_POINTS 0"),
    ],
)
def test_options_that_do_not_exist(tiny_mask_cfg: CfgNode, key: str, value: Any, message: str) -> None:
    tiny_mask_cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ValueError, match=message):
        build_model(tiny_mask_cfg)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (("LOSS.CLASS", "cross_entropy"), ("LOSS.NO_OBJECT_WEIGHT", 0.0), "NO_OBJECT_WEIGHT is 0.0; give more than 0"),
        (
            ("QUERY_SELECTION.NAME", "LearnedQueries"),
            ("QUERY_SELECTION.BOX_INIT", "mask2box"),
            "BOX_INIT is 'mask2box', but LearnedQueries learn",
        ),
    ],
)
def test_options_that_exclude_each_other(
    tiny_mask_cfg: CfgNode, one: tuple[str, Any], other: tuple[str, Any], message: str
) -> None:
    for key, value in (one, other):
        tiny_mask_cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ValueError, match=message):
        build_model(tiny_mask_cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [("CLASS_HEAD.NAME", "Linear"), ("LOSS.CLASS", "cross_entropy"), ("LOSS.BOXES_OF_STUFF_ON", False)],
)
def test_options_of_fixed_classes_with_text(tiny_cfg: CfgNode, key: str, value: Any) -> None:
    tiny_cfg.merge_from_list([f"MODEL.{key}", value, "MODEL.CLASS_HEAD.NUM_CLASSES", 5])
    with pytest.raises(ValueError, match=f"MODEL.{key} is {value!r}, which needs fixed classes"):
        build_model(tiny_cfg)


def test_text_asked_of_fixed_classes(model: nn.Module, picture: MakePicture) -> None:
    with pytest.raises(ValueError, match="a picture is asked for with a caption 'a dog', but the model finds 5 fixed"):
        model([picture(64, 80, caption="a dog")])
    with pytest.raises(ValueError, match="1 categories, but the model finds 5 fixed classes"):
        model([picture(64, 80, categories=["dog"])])
