"""Mask DINO against its authors' outputs (tests/reference/mask_dino), with the recipe's weights."""

from __future__ import annotations

import dataclasses
import json
from types import ModuleType
from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.checkpoint.origins import translate_checkpoint
from grounding_dino.model_zoo import load_cfg
from grounding_dino.modeling.mask_results import MaskResults
from grounding_dino.modeling.transformer_decoder.denoising import DenoisingNoise
from grounding_dino.modeling.transformer_decoder.query_selection import LearnedQueries, token_proposals
from grounding_dino.structures import DecoderOutput, Memory, Targets

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

pytestmark = pytest.mark.slow

# the README's tolerances
FEATURES, LOGITS, ENCODER_BOXES, BOXES, MASKS, SCORES, AREA = 3e-5, 5e-5, 2e-6, 2e-5, 4e-4, 1e-3, 3
PROBABILITIES = 1e-4
TWO = [(192, 256, 1, 192, 256), (160, 224, 2, 160, 224)]
CASES = {  # golden: configuration, pictures (height, width, seed, output height, output width), levels coarse first
    "r50_instance_2048": ("mask_dino/coco/r50_instance", TWO),
    "r50_instance_hid1024": ("mask_dino/coco/r50_instance_hid1024", [(192, 256, 1, 288, 384), (160, 224, 2, 80, 112)]),
    "r50_panoptic": ("mask_dino/coco/r50_panoptic", TWO),
    "ade20k_semantic": ("mask_dino/ade20k/r50_semantic", [(192, 256, 1, 192, 256), (160, 224, 2, 240, 336)]),
    "swinl_instance": ("mask_dino/coco/swin_l_instance", [(128, 96, 3, 128, 96)]),
}
COARSE_FIRST_IN_ENCODER = ("r50_instance_hid1024", "ade20k_semantic")


class Case:
    """One golden case through our model, the golden selection injected."""

    def __init__(self, name: str, recipe_weights: Any, reference: Any, fill: ModuleType, golden_of: Any) -> None:
        config, pictures = CASES[name]
        self.name = name
        self.golden = dict(np.load(reference / "mask_dino" / f"golden_{name}.npz"))
        self.stored = golden_of(self.golden)
        opts = ["MODEL.DEVICE", "cpu", "MODEL.PAD_BEFORE_BACKBONE_ON", True]
        self.model: Any = build_model(load_cfg(config, opts)).eval()
        weights = recipe_weights("mask_dino", f"manifest_{name}.json")
        self.model.load_state_dict(translate_checkpoint({"model": weights}, name).state)
        self.inputs = [
            {"image": torch.from_numpy(fill.fill_image(h, w, seed=seed)).permute(2, 0, 1), "height": oh, "width": ow}
            for h, w, seed, oh, ow in pictures
        ]
        self._run()

    @torch.no_grad()
    def _run(self) -> None:
        model = self.model
        images = model.preprocess_image(self.inputs)
        self.features = model.extract_features(images)
        self.memory: Memory = model.pixel_decoder(self.features, None)[0]
        queries, self.encoder = self.with_golden_selection(
            lambda: model.query_selection(self.memory, None, model.transformer_decoder)
        )
        self.output: DecoderOutput = model.transformer_decoder(queries, self.memory, None)
        self.states, self.references = model.transformer_decoder.refine(queries, self.memory, None)

    @property
    def coarse_first(self) -> bool:
        """Whether the reference's decoder lists its tokens from the coarsest level to the finest."""
        return self.name not in COARSE_FIRST_IN_ENCODER

    def to_our_tokens(self, indices: Tensor) -> Tensor:
        """Token indices in the reference's order of levels, in ours."""
        shapes = self.memory.spatial_shapes.tolist()
        order = list(reversed(range(len(shapes)))) if self.coarse_first else list(range(len(shapes)))
        ours, theirs = torch.zeros_like(indices), 0
        for level in order:
            size = shapes[level][0] * shapes[level][1]
            inside = (indices >= theirs) & (indices < theirs + size)
            ours[inside] = indices[inside] - theirs + int(self.memory.level_start_index[level])
            theirs += size
        return ours

    def to_their_tokens(self, values: Tensor) -> Tensor:
        """(B, S, ...) in our order of tokens, in the reference's."""
        shapes = self.memory.spatial_shapes.prod(1).tolist()
        levels = list(values.split(shapes, dim=1))
        return torch.cat(levels[::-1] if self.coarse_first else levels, dim=1)

    def with_golden_selection(self, run: Any) -> Any:
        """`run()` while the tokens that the reference selected are selected."""
        if isinstance(self.model.query_selection, LearnedQueries):
            return run()
        indices = self.to_our_tokens(torch.from_numpy(self.golden["topk_indices"].astype(np.int64)))
        return self.stored.selected(self.model, indices, run)

    @property
    def scores(self) -> Tensor | None:
        """(B, S): what the tokens are ranked by; None where queries are learned."""
        return self.stored.scores

    def check(self, ours: Tensor, name: str, atol: float) -> None:
        self.stored.check(ours, name, atol)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, recipe_weights: Any, reference: Any, fill: ModuleType, golden_of: Any) -> Case:
    return Case(request.param, recipe_weights, reference, fill, golden_of)


def strided(x: Tensor, count: int) -> Tensor:
    flat = x.flatten()
    return flat[:: max(1, flat.numel() // count)]


def test_pixel_decoder(case: Case) -> None:
    memory = case.memory
    assert memory.mask_features is not None
    case.check(strided(memory.mask_features, 4096), "mask_features_sub", FEATURES)
    shapes = memory.spatial_shapes.tolist()
    levels = memory.features.split([h * w for h, w in shapes], dim=1)
    order = range(len(shapes)) if case.coarse_first else reversed(range(len(shapes)))  # the encoder's
    for theirs, level in enumerate(order):
        h, w = shapes[level]
        x = levels[level].transpose(1, 2).unflatten(-1, (h, w))
        case.check(strided(x, 2048 if case.name == "r50_instance_2048" else 512), f"msf{theirs}_sub", FEATURES)


def test_selection(case: Case) -> None:
    if case.encoder is None:
        assert "topk_indices" not in case.golden
        return
    proposals, invalid = token_proposals(case.memory, case.model.query_selection.smallest_proposals)
    case.check(case.to_their_tokens(proposals)[0, ::7], "output_proposals_sub", 1e-5)
    np.testing.assert_array_equal((~invalid).sum(1), case.golden["proposal_valid_count"])
    indices = case.to_our_tokens(torch.from_numpy(case.golden["topk_indices"].astype(np.int64)))
    assert case.scores is not None
    case.check(case.scores.gather(1, indices), "topk_scores", LOGITS)
    own = case.scores.topk(indices.shape[1], dim=1).indices
    for mine, theirs in zip(own.tolist(), indices.tolist()):
        assert set(mine) == set(theirs)
    case.check(case.encoder.pred_boxes, "interm_pred_boxes", ENCODER_BOXES)
    case.check(case.encoder.pred_logits[:, ::10, ::3], "interm_pred_logits_sub", LOGITS)
    case.check(case.encoder.pred_masks[:, ::30, ::4, ::4], "interm_pred_masks_sub", MASKS)


def test_decoder(case: Case) -> None:
    step = 1 if case.name == "r50_instance_2048" else 3
    case.check(torch.stack(case.references)[:, :, ::step], "ref_boxes", BOXES)
    case.check(torch.stack(case.states)[:, :, ::20, ::16], "hs_sub", FEATURES)
    last, others = case.output.layers[-1], case.output.layers[:-1]
    case.check(last.pred_boxes, "pred_boxes", BOXES)
    case.check(last.pred_logits[:, :: 1 if step == 1 else 4], "pred_logits", LOGITS)
    assert last.pred_masks is not None
    assert list(last.pred_masks.shape) == case.golden["pred_masks_shape"].tolist()
    case.check(last.pred_masks[:, :: 6 if step == 1 else 12, ::4, ::4], "pred_masks_sub", MASKS)
    case.check(torch.stack([p.pred_boxes for p in others])[:, :, ::3], "aux_pred_boxes", BOXES)
    case.check(torch.stack([p.pred_logits for p in others])[:, :, ::30, ::4], "aux_pred_logits_sub", LOGITS)


@torch.no_grad()
def results(case: Case) -> list[dict[str, Any]]:
    return case.with_golden_selection(lambda: case.model(case.inputs))


def test_results(case: Case) -> None:
    """Instances, semantic maps and panoptic segments of the whole forward."""
    for i, result in enumerate(results(case)):
        if "inst0_scores" in case.golden:
            check_instances(case, i, result["instances"])
        else:
            assert "instances" not in result
        if "sem0_shape" in case.golden:
            check_semantic(case, i, result["sem_seg"])
        if "pan0_seg" in case.golden:
            segments = result["panoptic_seg"]
            check_segments(segments, case.golden[f"pan{i}_seg"], case.golden[f"pan{i}_segments"])


def check_instances(case: Case, i: int, found: Any) -> None:
    golden = {k.removeprefix(f"inst{i}_"): v for k, v in case.golden.items() if k.startswith(f"inst{i}_")}
    height, width = golden["image_size"].tolist()
    assert found.image_size == (height, width) and len(found) == len(golden["scores"])
    order = np.argsort(-golden["scores"], kind="stable")
    np.testing.assert_allclose(found.scores, golden["scores"][order], rtol=0, atol=SCORES)
    expected = Boxes(torch.from_numpy(golden["boxes"]))
    expected.clip((height, width))  # the authors leave them as they are
    near = (found.pred_boxes.tensor[:, None] - expected.tensor).abs().amax(-1) < 10 * BOXES * max(height, width)
    near &= found.pred_classes[:, None] == torch.from_numpy(golden["classes"].astype(np.int64))
    near &= (found.scores[:, None] - torch.from_numpy(golden["scores"])).abs() < SCORES
    areas = found.pred_masks.sum(dim=(1, 2))
    near &= (areas[:, None] - torch.from_numpy(golden["mask_area"].astype(np.int64))).abs() <= AREA
    clear = torch.from_numpy(golden["scores"] > golden["scores"].min() + 2 * SCORES)
    assert near.any(0)[clear].all() and near.any(1)[: int(clear.sum())].all()
    for k, packed in enumerate(golden["masks_packed"]):
        mask = torch.from_numpy(np.unpackbits(packed)[: height * width].astype(bool)).view(height, width)
        alike = near[:, k].nonzero()[:, 0].tolist()
        assert not clear[k] or any(int((found.pred_masks[j] ^ mask).sum()) <= AREA for j in alike)


def check_semantic(case: Case, i: int, found: Tensor) -> None:
    assert list(found.shape) == case.golden[f"sem{i}_shape"].tolist()
    case.check(found[::7, ::8, ::8], f"sem{i}_prob_sub", PROBABILITIES)
    clear = case.golden[f"sem{i}_margin"] > 1e-3
    best = found.argmax(0)[::2, ::2].numpy()
    np.testing.assert_array_equal(best[clear], case.golden[f"sem{i}_argmax"][clear])


def check_segments(found: tuple[Tensor, list[dict[str, Any]]], segments: np.ndarray, rows: np.ndarray) -> None:
    ours = [(s["id"], s["category_id"], int(s["isthing"])) for s in found[1]]
    assert ours == [tuple(row) for row in rows.tolist()]
    assert (found[0].numpy() != segments).sum() <= AREA * max(1, len(rows))


def test_panoptic_segments_at_other_thresholds(case: Case) -> None:
    """With the official thresholds the random model has no segment."""
    thresholds = [value.tolist() for key, value in case.golden.items() if key.endswith("_thresholds")]
    assert len(thresholds) == (2 if case.name == "r50_panoptic" else 0)
    for v, (score, overlap) in enumerate(thresholds):
        case.model.masks = MaskResults(panoptic=True, object_mask_threshold=score, overlap_threshold=overlap)
        for i, result in enumerate(results(case)):
            golden = case.golden
            check_segments(result["panoptic_seg"], golden[f"panv{v}_{i}_seg"], golden[f"panv{v}_{i}_segments"])


LOSSES = {"class": "ce", "l1": "bbox", "giou": "giou", "mask": "mask", "dice": "dice"}


@pytest.fixture(scope="module")
def trained(recipe_weights: Any) -> Any:
    model = build_model(load_cfg("mask_dino/coco/r50_instance", ["MODEL.DEVICE", "cpu"])).train()
    weights = recipe_weights("mask_dino", "manifest_r50_instance_2048.json")
    model.load_state_dict(translate_checkpoint({"model": weights}, "r50_instance_2048").state)
    return model


def grid_points(side: int = 112) -> Tensor:
    """(1, P, 2): the middles of a regular grid, row by row."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return ((torch.stack((x, y), -1).reshape(1, -1, 2) + 0.5) / side).float()


@pytest.mark.parametrize("noise", ["dn_no", "dn_seg_zero_noise", "dn_seg_stored_noise"])
def test_training(trained: Any, noise: str, reference: Any, fill: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """All loss terms and matches of a training step, with the golden targets, points and draws."""
    facts = json.loads((reference / "mask_dino" / "train_r50_instance_2048.json").read_text())
    arrays = {
        k: torch.from_numpy(v) for k, v in np.load(reference / "mask_dino" / "train_r50_instance_2048.npz").items()
    }
    monkeypatch.setattr(trained, "target_of", golden_targets(trained, arrays))
    drawn = stored_noise(arrays) if noise == "dn_seg_stored_noise" else no_noise()
    monkeypatch.setattr(trained.denoising, "draw_noise", lambda *args: drawn)
    if noise == "dn_no":
        monkeypatch.setitem(trained._modules, "denoising", None)
    points = grid_points()
    monkeypatch.setattr(trained.criterion.matcher.mask_costs, "draw_points", lambda *args: points)
    monkeypatch.setattr(trained.criterion.mask_losses, "draw_points", lambda logits: points.expand(len(logits), -1, -1))
    seen: list[Any] = []
    match = trained.criterion.matcher.forward
    monkeypatch.setattr(trained.criterion.matcher, "forward", lambda *args: seen.append(match(*args)) or seen[-1])
    with torch.no_grad():
        losses = trained(training_inputs(fill, arrays))
    for name, value in losses.items():
        term, _, rest = name.removeprefix("loss_").partition("_")
        kind = f"_{rest}".replace("_denoising", "_dn").replace("_encoder", "_interm").rstrip("_")
        # GIoU's divisors carry 1e-6 there, which shows where a denoised box is its target (2e-5 instead of 0)
        smallest = 3e-5 if term == "giou" else 1e-6
        assert value.item() == pytest.approx(facts[noise][f"loss_{LOSSES[term]}{kind}"], rel=1e-4, abs=smallest), name
    assert len(losses) == (55 if noise == "dn_no" else 105)
    tag = {"dn_no": "dn_no", "dn_seg_zero_noise": "dn_zero", "dn_seg_stored_noise": "dn_stored"}[noise]
    for stage, name in enumerate([*(f"aux{i}" for i in range(9)), "final", "interm"]):
        for b in range(2):
            query, target = arrays[f"{tag}_match_{name}_img{b}"].long()
            mine = seen[0].picture == b
            assert torch.equal(seen[0].query[stage, mine], query)
            assert torch.equal(seen[0].target[stage, mine] - 3 * b, target)


def training_inputs(fill: ModuleType, arrays: dict[str, Tensor]) -> list[dict[str, Any]]:
    inputs = []
    for b, (h, w, seed, _, _) in enumerate(TWO):
        instances = Instances((h, w))
        instances.gt_boxes = Boxes(arrays[f"gt{b}_boxes_xyxy"].float())
        instances.gt_classes = arrays[f"gt{b}_labels"].long()
        bits = np.unpackbits(arrays[f"gt{b}_masks_packed"].numpy(), axis=-1)[:, : h * w]
        instances.gt_masks = BitMasks(torch.from_numpy(bits.astype(bool)).view(3, h, w))
        image = torch.from_numpy(fill.fill_image(h, w, seed=seed)).permute(2, 0, 1)
        inputs.append({"image": image, "instances": instances, "image_id": b})
    return inputs


def golden_targets(model: Any, arrays: dict[str, Tensor]) -> Any:
    """Boxes relative to a picture's own size, as the authors' training has them, and not to the padded one."""
    own = model.target_of

    def target_of(inputs: dict[str, Any], *args: Any) -> Targets:
        boxes = arrays[f"target{inputs['image_id']}_boxes_cxcywh_norm"]
        return dataclasses.replace(own(inputs, *args), boxes=boxes)

    return target_of


def no_noise() -> DenoisingNoise:
    shape = (33, 1, 6)
    return DenoisingNoise(
        torch.ones(shape), torch.zeros(shape, dtype=torch.int64), torch.ones(*shape, 4), torch.zeros(*shape, 4)
    )


def stored_noise(arrays: dict[str, Tensor]) -> DenoisingNoise:
    uniform = arrays["dn_stored_label_p"].flatten()
    labels = torch.zeros(198, dtype=torch.int64)
    labels[uniform < 0.2] = arrays["dn_stored_new_labels"].long()
    signed = (arrays["dn_stored_box_rand"] * 2 - 1).view(33, 1, 6, 4)
    return DenoisingNoise(uniform.view(33, 1, 6), labels.view(33, 1, 6), signed.sign(), signed.abs())


def test_losses_of_random_points(
    trained: Any, reference: Any, fill: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mask and dice losses at points drawn as in training lie where the authors' lie over their 20 draws."""
    facts = json.loads((reference / "mask_dino" / "train_r50_instance_2048.json").read_text())
    arrays = {
        k: torch.from_numpy(v) for k, v in np.load(reference / "mask_dino" / "train_r50_instance_2048.npz").items()
    }
    monkeypatch.setattr(trained, "target_of", golden_targets(trained, arrays))
    monkeypatch.setitem(trained._modules, "denoising", None)
    torch.manual_seed(0)
    with torch.no_grad():
        losses = trained(training_inputs(fill, arrays))
    statistics = facts["dn_no_random_points_seeds"]
    for term in ("mask", "dice"):
        for i in (*range(9), None):
            suffix = "" if i is None else f"_{i}"
            found = statistics[f"loss_{term}{suffix}"]
            assert abs(losses[f"loss_{term}{suffix}"].item() - found["mean"]) < 5 * found["std"] + 1e-3
