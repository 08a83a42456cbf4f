"""What every side of a benchmark is given: names, pictures, prompts, and the weights in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from grounding_dino.structures import Prompt

    from detectron2.config import CfgNode

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CONFIG_FILE, WEIGHTS_FILE, TRANSFORMERS_FOLDER = "config.yaml", "ours.safetensors", "transformers"
COLOURS = "red orange yellow green blue purple pink brown black white grey golden silver dark pale".split()


def names_of(count: int) -> list[str]:
    """Different names: "cat", the 80 of COCO, or those and coloured ones, about as long in tokens as LVIS's 1203.

    Raises:
        ValueError: there are not as many.
    """
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    plain = [str(category["name"]) for category in COCO_CATEGORIES if category["isthing"]]
    if count == 1:
        return ["cat"]
    names = [*plain, *(f"{colour} {name}" for colour in COLOURS for name in plain)]
    if count > len(names):
        raise ValueError(f"--categories {count}: there are {len(names)} names at most")
    return names[:count]


def pictures_of(size: Sequence[int], batch: int, channels: int = 3) -> list[Tensor]:
    """Pictures (channels, height, width) uint8 of smooth colours with noise, the same every time."""
    height, width = size
    pictures = []
    for number in range(batch):
        generator = torch.Generator().manual_seed(number)
        coarse = torch.rand(1, channels, 12, 12, generator=generator)
        smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
        noise = 0.1 * torch.rand(channels, height, width, generator=generator)
        pictures.append((255 * (0.9 * smooth + noise)).to(torch.uint8))
    return pictures


def inputs_of(cfg: CfgNode, size: Sequence[int], batch: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """What our model is called with; `names` are left out for a model of fixed classes."""
    asked = {"categories": list(names)} if cfg.MODEL.TEXT_ENCODER.NAME else {}
    facts = {"height": size[0], "width": size[1], **asked}
    return [{"image": image, **facts} for image in pictures_of(size, batch, len(cfg.MODEL.PIXEL_MEAN))]


def prompts_of(cfg: CfgNode, names: Sequence[str]) -> list[Prompt]:
    """The prompts that `names` take, none for a model of fixed classes."""
    from grounding_dino.text.prompt_builder import PromptBuilder

    if not cfg.MODEL.TEXT_ENCODER.NAME:
        return []
    return PromptBuilder.from_config(cfg).of_categories(names, cfg.TEST.CATEGORIES_PER_PROMPT)


def first_names(cfg: CfgNode, names: Sequence[str]) -> list[str]:
    """The names of the first prompt."""
    prompts = prompts_of(cfg, names)
    return list(names[: len(prompts[0].token_spans)]) if prompts else list(names)


def calls_of(
    cfg: CfgNode, size: Sequence[int], batch: int, names: Sequence[str], device: torch.device
) -> list[dict[str, Tensor]]:
    """What `transformers`' model is called with, for each prompt that the names take."""
    from grounding_dino.text.batch import collate_prompts

    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    pixels = torch.stack([(image - mean) / std for image in pictures_of(size, batch)]).to(device)
    mask = torch.ones(batch, *size, dtype=torch.int64, device=device)
    calls = []
    for prompt in prompts_of(cfg, names):
        text = collate_prompts([prompt] * batch)
        words = {
            "input_ids": text.input_ids,
            "attention_mask": (~text.padding_mask).long(),
            "token_type_ids": torch.zeros_like(text.input_ids),
        }
        on_device = {name: tensor.to(device) for name, tensor in words.items()}
        calls.append({"pixel_values": pixels, "pixel_mask": mask, **on_device})
    return calls


def load_transformers(folder: str, **options: Any) -> Any:
    """The model of a folder, as its configuration and `options` say; nothing is fetched.

    Raises:
        ValueError: the weights are not all there.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    kind = getattr(transformers, config.architectures[0])
    model, info = kind.from_pretrained(folder, output_loading_info=True, local_files_only=True, **options)
    wrong = [name for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[key]]
    if wrong:
        raise ValueError(f"transformers does not read the converted weights: {wrong[:3]}")
    return model
