"""Grounding DINO and MM-Grounding-DINO against mmdet's outputs (tests/reference/mmdet), with the recipe's weights."""

from __future__ import annotations

from types import ModuleType

import grounding_dino.modeling  # noqa: F401
from grounding_dino.checkpoint.origins import translate_checkpoint
from grounding_dino.model_zoo import load_cfg
from grounding_dino.structures import DecoderOutput, Memory, TextFeatures

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

pytestmark = pytest.mark.slow

QUERIES = 100
MMDET_EPS = ["MODEL.TRANSFORMER_DECODER.BOX_EPS", 1e-5]  # its references keep 1e-3
CASES = {
    "gdino": ("swin_t_ogc", "manifest_mmdet_grounding_dino_swin-t_pretrain_obj365_goldg_cap4m.json", MMDET_EPS),
    "mmgdino": ("mm_swin_t", "manifest_mmdet_mm_grounding_dino_swin-t_pretrain_obj365_goldg.json", []),
}
NAMES = ["bench", "car"]
SIZES = [(192, 256), (160, 224)]


class Case:
    """A golden case, our model with its weights, and our outputs with the golden selection injected."""

    def __init__(self, name: str, recipe_weights, reference, fill: ModuleType) -> None:
        config, manifest, opts = CASES[name]
        self.golden = dict(np.load(reference / "mmdet" / f"golden_mmdet_{name}_swint.npz"))
        opts = ["MODEL.DEVICE", "cpu", "MODEL.QUERY_SELECTION.NUM_QUERIES", QUERIES, *opts]
        opts += ["MODEL.PAD_BEFORE_BACKBONE_ON", True, "MODEL.TRANSFORMER_DECODER.SHARED_BOX_HEAD_ON", False]
        opts += ["MODEL.DENOISING.ENABLED_ON", name == "mmgdino", "TEST.DETECTIONS_PER_IMAGE", 50]
        self.model = build_model(load_cfg(config, opts)).eval()
        weights = recipe_weights("mmdet", manifest, {"query_embedding.weight": [QUERIES, 256]})
        state = dict(translate_checkpoint({"state_dict": weights}, name).state)
        if name == "gdino":
            state.pop("denoising.label_embedding.weight", None)
        self.model.load_state_dict(state)
        self.inputs = [
            {"image": torch.from_numpy(fill.fill_image(h, w, seed=seed)).permute(2, 0, 1), "categories": NAMES}
            for seed, (h, w) in enumerate(SIZES, start=1)
        ]
        self._run()

    @torch.no_grad()
    def _run(self) -> None:
        model = self.model
        images = model.preprocess_image(self.inputs)
        self.prompts = [model.prompts_of(x)[0] for x in self.inputs]
        self.features = model.extract_features(images)
        self.text_in: TextFeatures = model.text_encoder(self.prompts)
        self.memory, self.text = model.pixel_decoder(self.features, self.text_in)
        seen: list[torch.Tensor] = []
        own_select = model.query_selection.select

        def select(scores: torch.Tensor, memory: Memory) -> tuple[torch.Tensor, None]:
            seen.extend((scores, own_select(scores, memory)[0]))
            return torch.from_numpy(self.golden["topk_indices"]), None

        model.query_selection.select = select
        queries, _ = model.query_selection(self.memory, self.text, model.transformer_decoder)
        del model.query_selection.select
        self.scores, self.indices = seen
        self.output: DecoderOutput = model.transformer_decoder(queries, self.memory, self.text)


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request, recipe_weights, reference, fill) -> Case:
    return Case(request.param, recipe_weights, reference, fill)


def test_text(case: Case) -> None:
    np.testing.assert_array_equal(case.text_in.position_ids, case.golden["text_position_ids"])
    np.testing.assert_array_equal(case.text_in.attention_mask, case.golden["text_self_attention_mask"])
    np.testing.assert_allclose(case.text_in.embeddings, case.golden["text_feat"], rtol=0, atol=1e-4)


def test_levels_and_encoder(case: Case) -> None:
    for level, feature in enumerate(case.features.maps):
        np.testing.assert_allclose(feature[:, ::16], case.golden[f"neck_out{level}_sub"], rtol=0, atol=1e-4)
    valid = ~case.memory.padding_mask[:, ::4].numpy()
    ours = case.memory.features[:, ::4, ::8].numpy()
    np.testing.assert_allclose(ours[valid], case.golden["encoder_layer5_sub"][valid], rtol=0, atol=1e-4)
    np.testing.assert_allclose(case.text.embeddings, case.golden["text_layer5"], rtol=0, atol=1e-4)


def test_selection(case: Case) -> None:
    np.testing.assert_allclose(case.scores, case.golden["topk_score_all_tokens"], rtol=0, atol=2e-4)
    np.testing.assert_array_equal(case.indices, case.golden["topk_indices"])


def test_predictions_of_all_layers(case: Case) -> None:
    logits = torch.stack([p.pred_logits for p in case.output.layers])[:, :, ::3, :6]
    boxes = torch.stack([p.pred_boxes for p in case.output.layers])
    np.testing.assert_allclose(logits, case.golden["pred_logits_all_layers_sub"], rtol=0, atol=2e-4)
    np.testing.assert_allclose(boxes[:, :, ::3], case.golden["pred_boxes_all_layers_sub"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(boxes[-1], case.golden["pred_boxes"], rtol=0, atol=1e-5)


def test_detections(case: Case) -> None:
    """The whole forward, as sets: every golden detection has one of ours like it, and the other way round."""
    with torch.no_grad():
        results = case.model(case.inputs)
    for i, result in enumerate(results):
        ours = result["instances"]
        labels = torch.from_numpy(case.golden[f"det{i}_labels"])
        boxes, scores = torch.from_numpy(case.golden[f"det{i}_boxes"]), torch.from_numpy(case.golden[f"det{i}_scores"])
        np.testing.assert_allclose(ours.scores, scores, rtol=0, atol=1e-4)
        # saturated scores tie, and where the last rank falls into a tie either may be kept
        clear = scores > scores[-1] + 1e-4
        close = (ours.pred_boxes.tensor[:, None] - boxes[None]).abs().amax(-1) < 0.01
        same = close & (ours.pred_classes[:, None] == labels[None]) & ((ours.scores[:, None] - scores).abs() < 1e-4)
        assert same.any(0)[clear].all()
        assert same.any(1)[ours.scores > scores[-1] + 1e-4].all()
