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


PUBLISHED: dict[str, PublishedCost] = {
    "dino/r50_4scale_12ep": PublishedCost(47, 279, "DINO (arXiv:2203.03605)", "to be determined"),
    "mask_dino/coco/r50_instance": PublishedCost(52, 286, "Mask DINO", "to be determined"),
    "mask_dino/coco/r50_instance_hid1024": PublishedCost(47, 226, "Mask DINO", "to be determined"),
    "mask_dino/coco/swin_l_instance": PublishedCost(223, 1326, "Mask DINO", "to be determined"),
    "grounding_dino/swin_t_ogc": PublishedCost(172, 464, "Grounding DINO", "to be determined"),
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
