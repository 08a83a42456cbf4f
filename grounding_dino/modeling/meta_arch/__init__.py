"""Entries of Detectron2's META_ARCH_REGISTRY; importing this package registers them."""

from grounding_dino.modeling.meta_arch.generalized_dino import GeneralizedDINO
from grounding_dino.modeling.meta_arch.glip import GLIP

__all__ = ["GLIP", "GeneralizedDINO"]
