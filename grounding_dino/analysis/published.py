"""What the authors say their models cost."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from grounding_dino.model_zoo import config_folders, get_config_file


class PublishedCost(NamedTuple):
    """Published figures of a model.

    Attributes:
        parameters_m: millions of parameters.
        gflops: billions of what the authors call floating-point operations.
        source: where they stand.
        note: which size and convention give them, or what does not fit.
    """

    parameters_m: float
    gflops: float
    source: str
    note: str


_COCO = (
    "at 800x1115, the mean area of COCO val pictures at ResizeShortestEdge 800, 1333 (55 pictures looked at, +-1.4 %)"
)
_MASK_DINO_L = PublishedCost(223, 1326, "Mask DINO (arXiv:2206.02777)", f"Multiply-adds {_COCO}.")
PUBLISHED: dict[str, PublishedCost] = {
    "dino/r50_4scale_12ep": PublishedCost(
        47,
        279,
        "DINO (arXiv:2203.03605)",
        "Multiply-adds of a picture of 800x1280: 274.8 G without and 277.5 G with deformable sampling. The authors' "
        "code also runs the box head on every token (2.7) and the heads of all layers (0.7): 278.2 in all. The mean "
        "picture of COCO, of 800x1115, takes about 244, so 279 is not a mean over COCO.",
    ),
    "mask_dino/coco/r50_instance": PublishedCost(52, 286, "Mask DINO (arXiv:2206.02777)", f"Multiply-adds {_COCO}."),
    "mask_dino/coco/r50_instance_hid1024": PublishedCost(
        47,
        226,
        "Mask DINO (arXiv:2206.02777)",
        f"Multiply-adds {_COCO}. The published file, with encoder layers of 1024, has 43.8 M parameters: 47.0 M are "
        "those of the same model with 2048 (MODEL.PIXEL_DECODER.FFN_DIM), which takes 282 G, not 226.",
    ),
    "mask_dino/coco/swin_l_instance": _MASK_DINO_L,
    "mask_dino/coco/swin_l_instance_no_mask_enhance": _MASK_DINO_L,
    "grounding_dino/swin_t_ogc": PublishedCost(
        172,
        464,
        "Grounding DINO (arXiv:2303.05499)",
        f"Not reproduced. Multiply-adds with COCO's 80 names (195 tokens) {_COCO}, come within 4 %. Which prompt and "
        "size were counted is not published. One product of picture and text in the authors' code is two here (22 G); "
        "with 256 tokens, and the box head on every token, theirs would take about 454.",
    ),
}


def published_cost(config: str | Path) -> PublishedCost | None:
    """The figures of a packaged configuration, None where none are published.

    Raises:
        FileNotFoundError, ValueError: as `get_config_file` raises them.
    """
    file = Path(get_config_file(config)).resolve()
    for folder in config_folders():
        if file.is_relative_to(folder):
            return PUBLISHED.get(file.relative_to(folder).with_suffix("").as_posix())
    return None
