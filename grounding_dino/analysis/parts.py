"""The parts of a model that its cost is given for, and which module belongs to which."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from torch import nn

BEFORE, AFTER = "preprocessing", "postprocessing"  # what runs outside of every part

# The first rule that fits one of the running modules decides. So heads count as query selection's where it runs them,
# and the decoder's own operations outside of its layers (references, boxes, products with mask features) as heads'.
RULES = (
    ("query_selection", "query selection"),
    ("backbone", "backbone"),
    ("input_projection", "input projection"),
    ("text_encoder", "text encoder"),
    ("pixel_decoder.mask_features", "mask features"),
    ("pixel_decoder", "encoder"),
    ("transformer_decoder.layers", "decoder"),
    ("transformer_decoder.norm", "decoder"),
    ("transformer_decoder.reference_head", "decoder"),
    ("transformer_decoder", "heads and masks"),
    ("denoising", "denoising"),
    ("pyramid", "pyramid"),
    ("prompt_vectors", "text encoder"),
    ("tower", "tower"),
    ("head", "dense head"),
)
PARTS = (
    BEFORE,
    *("backbone", "input projection", "pyramid", "text encoder", "encoder", "mask features"),
    *("query selection", "decoder", "heads and masks", "denoising", "tower", "dense head"),
    AFTER,
)
LAST = ("transformer_decoder", "head")  # the modules after which results are put together


@dataclasses.dataclass(frozen=True)
class ParameterCounts:
    """Numbers in parameters, every one counted once, however many modules share it."""

    total: int
    trainable: int


def part_of(modules: Iterable[str], rules: Sequence[tuple[str, str]] = RULES) -> str | None:
    """The part that runs while modules of these names do; None outside of all parts."""
    running = [f"{name}." for name in modules]
    for prefix, part in rules:
        if any(name.startswith(f"{prefix}.") for name in running):
            return part
    return None


def starts_last(module: str) -> bool:
    """Whether a module of this name belongs to the last of a model: what runs outside of parts later is AFTER."""
    return module.split(".", 1)[0] in LAST


def count_parameters(model: nn.Module) -> dict[str, ParameterCounts]:
    """The parameters of each part that has any, in the order of PARTS.

    Raises:
        ValueError: a parameter that belongs to no part.
    """
    totals: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = part_of([name])
        if part is None:
            raise ValueError(
                f"the parameter {name} belongs to no part; add its module to grounding_dino.analysis.parts"
            )
        counts = totals.setdefault(part, [0, 0])
        counts[0] += parameter.numel()
        counts[1] += parameter.numel() * parameter.requires_grad
    return {part: ParameterCounts(*totals[part]) for part in PARTS if part in totals}
