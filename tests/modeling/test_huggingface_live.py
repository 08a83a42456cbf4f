"""Our models against the `transformers` implementations, live, with weights from the references' recipe."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.checkpoint.huggingface import save_huggingface_folder
from grounding_dino.checkpoint.loading import load_weights
from grounding_dino.checkpoint.origins import translate_checkpoint
from grounding_dino.model_zoo import load_cfg
from grounding_dino.text.batch import collate_prompts

import pytest
import torch
import transformers
from detectron2.modeling import build_model

pytestmark = pytest.mark.slow

QUERIES = 100
# transformers uses 1e-5 for both inverse sigmoids; the published models 1e-3
HF_EPS = ["MODEL.TRANSFORMER_DECODER.REFERENCE_EPS", 1e-5, "MODEL.TRANSFORMER_DECODER.BOX_EPS", 1e-5]
OFFICIAL = {"swin_t_ogc": "manifest_swin_t_ogc.json", "swin_b_cogcoor": "manifest_swin_b_cogcoor.json"}
MM = "manifest_mmdet_mm_grounding_dino_swin-t_pretrain_obj365_goldg.json"
PICTURES = [(192, 256, "a cat . the red dog ."), (160, 224, "bench . car on a road . tree ."), (224, 160, "bus .")]


def _build(config: str, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    opts = ["MODEL.DEVICE", "cpu", "MODEL.QUERY_SELECTION.NUM_QUERIES", QUERIES, "MODEL.PAD_BEFORE_BACKBONE_ON", True]
    model = build_model(load_cfg(config, [*opts, *HF_EPS, "MODEL.DENOISING.ENABLED_ON", False]))
    wanted = model.state_dict()
    model.load_state_dict({name: state[name] for name in wanted})
    return model.eval()


def _pair(name: str, recipe_weights, folder: Path) -> tuple[torch.nn.Module, Any]:
    """Our model and transformers', which reads what we write in its format."""
    if name == "mm":
        content = {"state_dict": recipe_weights("mmdet", MM, {"query_embedding.weight": [QUERIES, 256]})}
        config, loader = "mm_swin_t", transformers.MMGroundingDinoForObjectDetection
    else:
        shape = {"transformer.tgt_embed.weight": [QUERIES, 256]}
        content = {"model": recipe_weights("grounding_dino", OFFICIAL[name], shape)}
        config, loader = name, transformers.GroundingDinoForObjectDetection
    checkpoint = translate_checkpoint(content, name)
    ours = _build(config, dict(checkpoint.state))
    save_huggingface_folder(str(folder), ours.state_dict())
    # its default attention: under "eager" transformers 5 adds its boolean text mask to the scores as a number
    theirs, info = loader.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return ours, theirs.eval()


def _inputs(fill: ModuleType, count: int) -> list[dict[str, Any]]:
    return [
        {"image": torch.from_numpy(fill.fill_image(h, w, seed=seed + 1)).permute(2, 0, 1), "caption": caption}
        for seed, (h, w, caption) in enumerate(PICTURES[:count])
    ]


@torch.no_grad()
def _compare(ours: torch.nn.Module, theirs: Any, inputs: list[dict[str, Any]]) -> tuple[float, float]:
    images = ours.preprocess_image(inputs)
    prompts = [ours.prompts_of(x)[0] for x in inputs]
    tokens = collate_prompts(prompts)
    height, width = (max(i.shape[d] for i in images) for d in (1, 2))
    pixels = torch.zeros(len(images), 3, height, width)
    mask = torch.zeros(len(images), height, width, dtype=torch.int64)
    for row, image in enumerate(images):
        pixels[row, :, : image.shape[1], : image.shape[2]] = image
        mask[row, : image.shape[1], : image.shape[2]] = 1
    expected = theirs(
        pixel_values=pixels,
        pixel_mask=mask,
        input_ids=tokens.input_ids,
        attention_mask=(~tokens.padding_mask).long(),
        token_type_ids=torch.zeros_like(tokens.input_ids),
    )
    # near ties of the ranking move whole queries: both take transformers' selection
    indices = torch.topk(expected.enc_outputs_class.amax(-1), QUERIES, dim=1).indices
    ours.query_selection.select = lambda scores, memory: (indices, None)
    try:
        output = ours.detect(ours.extract_features(images), prompts).layers[-1]
    finally:
        del ours.query_selection.select
    logits = expected.logits[..., : output.pred_logits.shape[-1]]
    assert torch.equal(torch.isfinite(logits), torch.isfinite(output.pred_logits))
    finite = torch.isfinite(logits)
    return (
        (logits - output.pred_logits)[finite].abs().max().item(),
        (expected.pred_boxes - output.pred_boxes).abs().max().item(),
    )


@pytest.mark.parametrize("name", ["swin_t_ogc", "swin_b_cogcoor", "mm"])
def test_logits_and_boxes(name: str, recipe_weights, fill, tmp_path: Path) -> None:
    """One picture, and a padded batch of three with captions of different lengths."""
    ours, theirs = _pair(name, recipe_weights, tmp_path)
    for count in (1, 3):
        logits, boxes = _compare(ours, theirs, _inputs(fill, count))
        assert logits < 1e-3, f"{name}, {count} pictures: logits differ by {logits:.2g}"
        assert boxes < 1e-4, f"{name}, {count} pictures: boxes differ by {boxes:.2g}"


def test_folder_written_by_transformers_loads(tmp_path: Path) -> None:
    """`save_pretrained` -> our strict loading, full size."""
    theirs = transformers.GroundingDinoForObjectDetection(transformers.GroundingDinoConfig())
    theirs.save_pretrained(tmp_path)
    model = build_model(load_cfg("swin_t_ogc", ["MODEL.DEVICE", "cpu", "MODEL.DENOISING.ENABLED_ON", False]))
    report = load_weights(model, str(tmp_path))
    assert not report.new and not report.dropped and not report.misshapen
    ours = model.state_dict()["query_selection.content.weight"]
    assert torch.equal(ours, theirs.model.query_position_embeddings.weight)
