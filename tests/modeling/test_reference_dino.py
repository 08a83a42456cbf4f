"""DINO against its authors' outputs (tests/reference/dino) and mmdet's, with the recipes' weights."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.checkpoint.origins import translate_checkpoint
from grounding_dino.model_zoo import load_cfg
from grounding_dino.modeling.transformer_decoder.denoising import DenoisingNoise
from grounding_dino.modeling.transformer_decoder.query_selection import token_proposals
from grounding_dino.structures import DecoderOutput, Memory

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor

pytestmark = pytest.mark.slow

# the README's tolerances
FEATURES, POSITION, LOGITS, ENCODER_BOXES, BOXES, SCORES = 4e-5, 1e-5, 4e-5, 2e-6, 1e-5, 3e-6
TWO = [(192, 256, 1, 192, 256), (160, 224, 2, 160, 224)]
CASES = {  # golden: configuration, pictures (height, width, seed, output height, output width)
    "r50_4scale": ("dino/r50_4scale_12ep", TWO),
    "r50_4scale_single": ("dino/r50_4scale_12ep", [(256, 320, 3, 512, 640)]),
    "r50_5scale": ("dino/r50_5scale_12ep", [(128, 160, 4, 128, 160)]),
    "swinl_4scale": ("dino/swin_l_4scale_12ep", TWO),
    "convnext_xl_4scale": ("dino/convnext_xl_4scale_12ep", [(256, 256, 5, 256, 256)]),
}
# Every column a class of its own, as the authors' post-processing has it.
AS_PUBLISHED = [
    *("MODEL.DEVICE", "cpu", "MODEL.PAD_BEFORE_BACKBONE_ON", True, "MODEL.CLASS_HEAD.CATEGORY_IDS", []),
    *("MODEL.TIMM.PRETRAINED_ON", False, "MODEL.BACKBONE.WEIGHTS", ""),
]


def build(config: str, weights: dict[str, Tensor], *opts: Any) -> Any:
    model = build_model(load_cfg(config, [*AS_PUBLISHED, *opts])).eval()
    model.load_state_dict(translate_checkpoint({"model": weights}, config).state)
    return model


class Case:
    """One golden case through our model, the golden selection injected."""

    def __init__(self, stored: Any, model: Any, inputs: list[dict[str, Any]]) -> None:
        self.stored, self.golden, self.model, self.inputs = stored, stored.arrays, model, inputs
        with torch.no_grad():
            images = model.preprocess_image(inputs)
            self.features = model.extract_features(images)
            self.position = model.pixel_decoder.position_embedding(self.features)
            self.memory: Memory = model.pixel_decoder(self.features, None)[0]
            queries, self.encoder = self.with_golden_selection(
                lambda: model.query_selection(self.memory, None, model.transformer_decoder)
            )
            self.output: DecoderOutput = model.transformer_decoder(queries, self.memory, None)
            self.states, self.references = model.transformer_decoder.refine(queries, self.memory, None)

    def with_golden_selection(self, run: Any) -> Any:
        """`run()` while the tokens that the reference selected are selected."""
        indices = torch.from_numpy(self.golden["topk_indices"].astype(np.int64))
        return self.stored.selected(self.model, indices, run)

    @property
    def scores(self) -> Tensor:
        """(B, S): what the tokens are ranked by."""
        return self.stored.scores

    def check(self, ours: Tensor, name: str, atol: float) -> None:
        self.stored.check(ours, name, atol)

    def check_detections(self, results: list[dict[str, Any]]) -> None:
        """Scores in order; boxes are matched by label and score, whose gaps go below the noise."""
        for i, (result, inputs) in enumerate(zip(results, self.inputs)):
            found = result["instances"]
            scores, labels = self.golden[f"det{i}_scores"], self.golden[f"det{i}_labels"]
            np.testing.assert_allclose(found.scores, scores, rtol=0, atol=SCORES)
            expected = Boxes(torch.from_numpy(self.golden[f"det{i}_boxes_xyxy"]))
            expected.clip((inputs["height"], inputs["width"]))  # the authors leave them as they are
            largest = max(inputs["height"], inputs["width"])
            near = (found.pred_boxes.tensor[:, None] - expected.tensor).abs().amax(-1) < 10 * BOXES * largest
            near &= found.pred_classes[:, None] == torch.from_numpy(labels.astype(np.int64))
            near &= (found.scores[:, None] - torch.from_numpy(scores)).abs() < 2 * SCORES
            inside = scores > scores[-1] + 2 * SCORES  # the last ranks may fall into a tie
            assert near.any(0)[inside].all() and near.any(1)[: inside.sum()].all()


def inputs_of(fill: ModuleType, pictures: list[tuple[int, int, int, int, int]]) -> list[dict[str, Any]]:
    return [
        {
            "image": torch.from_numpy(fill.fill_image(h, w, seed=seed)).permute(2, 0, 1),
            "height": height,
            "width": width,
        }
        for h, w, seed, height, width in pictures
    ]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, recipe_weights: Any, reference: Any, fill: ModuleType, golden_of: Any) -> Case:
    config, pictures = CASES[request.param]
    golden = dict(np.load(reference / "dino" / f"golden_{request.param}.npz"))
    weights = recipe_weights("dino", f"manifest_{request.param.removesuffix('_single')}.json")
    return Case(golden_of(golden), build(config, weights), inputs_of(fill, pictures))


def test_levels_and_encoder(case: Case) -> None:
    for level, (source, mask) in enumerate(zip(case.features.maps, case.features.padding_masks)):
        assert list(source.shape) == case.golden[f"src{level}_shape"].tolist()
        flat = source.flatten()
        case.check(flat[:: max(1, flat.numel() // 512)], f"src{level}_sub", FEATURES)
        rows_columns = torch.stack(((~mask[:, :, 0]).sum(1), (~mask[:, 0]).sum(1)), 1)
        np.testing.assert_array_equal(rows_columns, case.golden[f"mask{level}_valid_hw"])
    np.testing.assert_array_equal(case.memory.spatial_shapes, case.golden["spatial_shapes"])
    case.check(case.memory.features[:, ::9, ::8], "memory_sub", FEATURES)
    start = case.memory.level_start_index.tolist()
    for level, (h, w) in enumerate(case.memory.spatial_shapes.tolist()):
        own = case.position[:, start[level] : start[level] + h * w] - case.model.pixel_decoder.level_embed[level]
        grid = own.detach().unflatten(1, (h, w)).permute(0, 3, 1, 2)[:, ::8, ::3, ::3]
        valid = ~case.features.padding_masks[level][:, None, ::3, ::3].expand(grid.shape)
        expected = torch.from_numpy(case.golden[f"pos{level}_sub"])
        torch.testing.assert_close(grid[valid], expected[valid], rtol=0, atol=POSITION)


def test_selection(case: Case) -> None:
    proposals, invalid = token_proposals(case.memory)
    case.check(proposals[:, ::7], "output_proposals_sub", 1e-5)
    np.testing.assert_array_equal((~invalid).sum(1), case.golden["valid_token_count"].reshape(-1))
    indices = torch.from_numpy(case.golden["topk_indices"].astype(np.int64))
    case.check(case.scores.gather(1, indices), "topk_scores", LOGITS)
    # where another token stands at a rank, its score is the same up to float noise
    own = case.scores.topk(indices.shape[1], dim=1)
    np.testing.assert_allclose(own.values, case.golden["topk_scores"], rtol=0, atol=LOGITS)
    case.check(case.encoder.pred_boxes[:, ::3], "interm_pred_boxes", ENCODER_BOXES)
    case.check(case.encoder.pred_logits[:, ::15, ::3], "interm_pred_logits_sub", LOGITS)


def test_decoder(case: Case) -> None:
    case.check(torch.stack(case.references)[:, :, ::3], "ref_boxes", BOXES)
    case.check(torch.stack(case.states)[:, :, ::45, ::16], "hs_sub", FEATURES)
    last = case.output.layers[-1]
    case.check(last.pred_boxes, "pred_boxes", BOXES)
    step = 2 if case.golden["pred_logits"].shape[1] == 450 else 6
    case.check(last.pred_logits[:, ::step], "pred_logits", LOGITS)
    case.check(torch.stack([p.pred_boxes for p in case.output.layers[:-1]])[:, :, ::6], "aux_pred_boxes", BOXES)
    logits = torch.stack([p.pred_logits for p in case.output.layers[:-1]])
    case.check(logits[:, :, ::45, ::4], "aux_pred_logits_sub", LOGITS)


def test_detections(case: Case) -> None:
    with torch.no_grad():
        case.check_detections(case.with_golden_selection(lambda: case.model(case.inputs)))


LOSSES = {"class": "ce", "l1": "bbox", "giou": "giou"}


@pytest.fixture(scope="module")
def trained(recipe_weights: Any) -> Any:
    opts = ["MODEL.DENOISING.BOX_NOISE_SCALE", 0.4]
    return build("dino/r50_4scale_12ep", recipe_weights("dino", "manifest_r50_4scale.json"), *opts).train()


@pytest.mark.parametrize("noise", ["dn_off", "dn_on_zero_noise", "dn_on_stored_noise"])
def test_training_losses(
    trained: Any, noise: str, reference: Any, fill: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All loss terms of a training step, with the golden targets and draws."""
    facts = json.loads((reference / "dino" / "train_r50_4scale.json").read_text())
    arrays = {k: torch.from_numpy(v) for k, v in np.load(reference / "dino" / "train_r50_4scale.npz").items()}
    inputs = inputs_of(fill, TWO)
    for b, sample in enumerate(inputs):
        height, width = sample["image"].shape[-2:]
        instances = Instances((height, width))
        x, y, w, h = (arrays[f"gt{b}_boxes_cxcywh"] * torch.tensor([width, height, width, height])).unbind(-1)
        instances.gt_boxes = Boxes(torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), -1))
        instances.gt_classes = arrays[f"gt{b}_labels"].long()
        sample["instances"] = instances
    drawn = stored_noise(arrays) if noise == "dn_on_stored_noise" else no_noise()
    monkeypatch.setattr(trained.denoising, "draw_noise", lambda *args: drawn)
    if noise == "dn_off":
        monkeypatch.setitem(trained._modules, "denoising", None)
    with torch.no_grad():
        losses = trained(inputs)
    weights = {"class": 1.0, "l1": 5.0, "giou": 2.0}
    checked = 0
    for name, value in losses.items():
        term, _, rest = name.removeprefix("loss_").partition("_")
        theirs = f"loss_{LOSSES[term]}" + f"_{rest}".replace("_denoising", "_dn").replace("_encoder", "_interm").rstrip(
            "_"
        )
        expected = facts[noise][theirs]
        assert value.item() / weights[term] == pytest.approx(expected, rel=1e-4, abs=1e-6), name
        checked += 1
    assert checked == (21 if noise == "dn_off" else 39)


def no_noise() -> DenoisingNoise:
    shape = (25, 2, 7)
    return DenoisingNoise(
        torch.ones(shape), torch.zeros(shape, dtype=torch.int64), torch.ones(*shape, 4), torch.zeros(*shape, 4)
    )


def stored_noise(arrays: dict[str, Tensor]) -> DenoisingNoise:
    flipped = arrays["dn_stored_label_p"] < 0.25
    labels = torch.zeros(350, dtype=torch.int64)
    labels[flipped] = arrays["dn_stored_new_labels"].long()
    # The stored numbers are as they were added: with their signs, and the 1 of the negative half on top.
    uniform = arrays["dn_stored_box_rand"].abs().view(25, 2, 7, 4) - torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    return DenoisingNoise(
        arrays["dn_stored_label_p"].view(25, 2, 7),
        labels.view(25, 2, 7),
        arrays["dn_stored_box_sign01"].view(25, 2, 7, 4) * 2.0 - 1.0,
        uniform,
    )


def test_mmdet(recipe_weights: Any, reference: Any, fill: ModuleType, golden_of: Any) -> None:
    """mmdet's DINO, whose heads and bias differ."""
    golden = dict(np.load(reference / "mmdet" / "golden_mmdet_dino_r50_4scale.npz"))
    weights = recipe_weights(
        "mmdet", "manifest_mmdet_dino-4scale_r50_8xb2-12e_coco.json", {"query_embedding.weight": [100, 256]}
    )
    model = build(
        "dino/mmdet_r50_4scale_12ep",
        weights,
        *("MODEL.QUERY_SELECTION.NUM_QUERIES", 100, "TEST.DETECTIONS_PER_IMAGE", 50),
    )
    case = Case(golden_of(golden), model, inputs_of(fill, TWO))
    for level, feature in enumerate(case.features.maps):
        case.check(feature[:, ::16], f"neck_out{level}_sub", 1e-4)
    case.check(case.scores, "topk_score_all_tokens", 2e-4)
    np.testing.assert_array_equal(case.scores.topk(100, dim=1).indices, golden["topk_indices"])
    logits = torch.stack([p.pred_logits for p in case.output.layers])
    boxes = torch.stack([p.pred_boxes for p in case.output.layers])
    case.check(logits[:, :, ::3], "pred_logits_all_layers_sub", 2e-4)
    case.check(boxes[:, :, ::3], "pred_boxes_all_layers_sub", 1e-5)
    case.check(logits[-1], "pred_logits", 2e-4)
    case.check(boxes[-1], "pred_boxes", 1e-5)
    with torch.no_grad():
        results = model(case.inputs)
    for i, result in enumerate(results):
        found = result["instances"]
        labels = torch.from_numpy(golden[f"det{i}_labels"])
        expected, scores = torch.from_numpy(golden[f"det{i}_boxes"]), torch.from_numpy(golden[f"det{i}_scores"])
        np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-4)
        close = (found.pred_boxes.tensor[:, None] - expected).abs().amax(-1) < 0.01
        same = close & (found.pred_classes[:, None] == labels) & ((found.scores[:, None] - scores).abs() < 1e-4)
        clear = scores > scores[-1] + 1e-4
        assert same.any(0)[clear].all() and same.any(1)[found.scores > scores[-1] + 1e-4].all()
