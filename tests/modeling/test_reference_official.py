"""Grounding DINO T against the authors' outputs (tests/reference/grounding_dino), with the recipe's weights."""

from __future__ import annotations

from types import ModuleType

import grounding_dino.modeling  # noqa: F401
from grounding_dino.checkpoint.origins import translate_checkpoint
from grounding_dino.model_zoo import load_cfg
from grounding_dino.structures import DecoderOutput, Memory, Queries, TextFeatures

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

pytestmark = pytest.mark.slow

FEATURES, LOGITS, BOXES = 5e-5, 5e-4, 1e-5  # the README's tolerances
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.DENOISING.ENABLED_ON", False]


@pytest.fixture(scope="module")
def model(recipe_weights) -> torch.nn.Module:
    """Swin-T, padding before the backbone as in the authors' code."""
    cfg = load_cfg("swin_t_ogc", [*OPTS, "MODEL.PAD_BEFORE_BACKBONE_ON", True])
    built = build_model(cfg)
    weights = recipe_weights("grounding_dino", "manifest_swin_t_ogc.json")
    translated = translate_checkpoint({"model": weights}, "the recipe")
    built.load_state_dict(translated.state)
    return built.eval()


class Run:
    """One reference case through our model, the reference's selection injected."""

    def __init__(
        self, model: torch.nn.Module, golden: dict[str, np.ndarray], fill: ModuleType, prefix: str = ""
    ) -> None:
        self.golden, self.prefix = golden, prefix
        inputs = [
            {"image": torch.from_numpy(fill.fill_image(h, w, seed=seed)).permute(2, 0, 1), "caption": str(caption)}
            for (h, w, seed), caption in zip(golden["pictures_hw_seed"].tolist(), golden["captions"])
        ]
        self.prompts = [model.prompts_of(x)[0] for x in inputs]
        with torch.no_grad():
            self.backbone_maps = model.backbone(_padded(model.preprocess_image(inputs)))
            features = model.extract_features(model.preprocess_image(inputs))
            self.maps = torch.cat([m.flatten(2).transpose(1, 2) for m in features.maps], dim=1)
            self.position = model.pixel_decoder.position_embedding(features)
            self.text_in: TextFeatures = model.text_encoder(self.prompts)
            self.memory: Memory
            self.memory, self.text = model.pixel_decoder(features, self.text_in)
            self.scores, self.own_indices, self.queries = self._select(model)
            self.output: DecoderOutput = model.transformer_decoder(self.queries, self.memory, self.text)
            self.states, self.references = model.transformer_decoder.refine(self.queries, self.memory, self.text)

    def _select(self, model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor, Queries]:
        seen: list[torch.Tensor] = []
        own_select = model.query_selection.select
        injected = torch.from_numpy(self.golden[self.prefix + "topk_indices"].astype(np.int64))

        def select(scores: torch.Tensor, memory: Memory) -> tuple[torch.Tensor, None]:
            seen.extend((scores, own_select(scores, memory)[0]))
            return injected, None

        model.query_selection.select = select
        try:
            queries, _ = model.query_selection(self.memory, self.text, model.transformer_decoder)
        finally:
            del model.query_selection.select
        return seen[0], seen[1], queries

    def check(self, ours: torch.Tensor, name: str, atol: float, rows: np.ndarray | None = None) -> None:
        expected = self.golden[self.prefix + name] if self.prefix + name in self.golden else self.golden[name]
        actual = ours.numpy()
        if rows is not None:
            actual, expected = actual[rows], expected[rows]
        np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected), err_msg=name)
        finite = np.isfinite(expected)
        np.testing.assert_allclose(actual[finite], expected[finite], rtol=0, atol=atol, err_msg=name)


def _padded(images: list[torch.Tensor]) -> torch.Tensor:
    height, width = (max(i.shape[d] for i in images) for d in (1, 2))
    return torch.stack([torch.nn.functional.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images])


@pytest.fixture(scope="module")
def single(model, reference, fill) -> Run:
    return Run(model, dict(np.load(reference / "grounding_dino" / "swin_t_case1_single.npz")), fill)


@pytest.fixture(scope="module")
def batch(model, reference, fill) -> Run:
    """Two pictures and captions; the text masks of each caption are its own (textmaskfix)."""
    return Run(model, dict(np.load(reference / "grounding_dino" / "swin_t_case1.npz")), fill, "textmaskfix_")


def test_text(single: Run, batch: Run) -> None:
    for run in (single, batch):
        ids = [list(p.input_ids) + [0] * (run.golden["input_ids"].shape[1] - len(p)) for p in run.prompts]
        np.testing.assert_array_equal(ids, run.golden["input_ids"])
        np.testing.assert_array_equal(run.text_in.position_ids, run.golden["position_ids"])
        np.testing.assert_array_equal(run.text_in.attention_mask, run.golden["text_self_attention_masks"])
        np.testing.assert_array_equal(~run.text_in.padding_mask, run.golden["attention_mask"].astype(bool))
        run.check(run.text_in.embeddings, "text_features", FEATURES)


def test_backbone_and_levels(single: Run, batch: Run) -> None:
    for run in (single, batch):
        for i, feature in enumerate(run.backbone_maps.values()):
            assert list(feature.shape) == run.golden[f"backbone{i}_shape"].tolist()
            run.check(feature.flatten(1)[:, :64], f"backbone{i}_head", FEATURES)
            flat = feature.flatten(1)
            statistics = torch.stack((flat.mean(1), flat.std(1, correction=0)), 1)
            run.check(statistics, f"backbone{i}_mean_std", FEATURES)
        np.testing.assert_array_equal(run.memory.spatial_shapes, run.golden["spatial_shapes"])
        np.testing.assert_allclose(run.memory.valid_ratios, run.golden["valid_ratios"], atol=1e-7)
        np.testing.assert_array_equal(run.memory.padding_mask, run.golden["mask_flatten"])
        run.check(run.maps[:, ::8], "src_flatten_s8", FEATURES)
        run.check(run.position[:, ::16], "lvl_pos_embed_s16", 1e-5)


def test_encoder(single: Run, batch: Run) -> None:
    single.check(single.memory.features[:, ::8], "memory_s8", FEATURES)
    single.check(single.text.embeddings, "memory_text", FEATURES)
    batch.check(batch.text.embeddings, "memory_text", FEATURES)


def test_selection_agrees_up_to_near_ties(single: Run, batch: Run) -> None:
    single.check(single.scores, "enc_class_max", 1e-3)
    for run in (single, batch):
        expected = run.golden[run.prefix + "topk_indices"]
        scores = run.scores.numpy()
        differing = run.own_indices.numpy() != expected
        # where another token stands at a rank, its score is the same up to float noise
        gap = np.take_along_axis(scores, run.own_indices.numpy(), 1) - np.take_along_axis(scores, expected, 1)
        assert np.abs(gap[differing]).max(initial=0.0) < 2e-4
        assert differing.mean() < 0.01


def test_decoder(single: Run, batch: Run) -> None:
    for run in (single, batch):
        last = run.output.layers[-1]
        width = run.golden["pred_logits"].shape[2]
        run.check(last.pred_logits[..., :width], "pred_logits", LOGITS)
        run.check(last.pred_boxes, "pred_boxes", BOXES)
    single.check(torch.stack([p.pred_boxes for p in single.output.layers[:-1]]), "layer_boxes", BOXES)
    single.check(torch.stack(single.references), "reference_boxes", BOXES)
    single.check(torch.stack(single.states)[:, :, ::30], "hs_q30", FEATURES)


def test_float64(model, single: Run, reference, fill) -> None:
    """In double precision the difference shrinks with the arithmetic: what is left is not a different formula."""
    double = model.double()
    try:
        run = Run(double, single.golden, fill)
        finite = np.isfinite(single.golden["pred_logits_f64"])
        difference = np.abs(run.output.layers[-1].pred_logits.numpy() - single.golden["pred_logits_f64"])[finite]
        assert difference.max() < 5e-5
        np.testing.assert_allclose(run.output.layers[-1].pred_boxes, single.golden["pred_boxes_f64"], atol=1e-6)
    finally:
        model.float()
