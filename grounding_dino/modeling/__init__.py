"""Models; importing this package fills Detectron2's registries."""

from grounding_dino.modeling import backbone, meta_arch

__all__ = ["backbone", "meta_arch"]
