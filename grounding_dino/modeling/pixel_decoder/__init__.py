"""Pixel decoders; importing this package registers them."""

from grounding_dino.modeling.pixel_decoder.build import PIXEL_DECODER_REGISTRY, build_pixel_decoder
from grounding_dino.modeling.pixel_decoder.deformable_encoder import DeformableEncoder

__all__ = ["PIXEL_DECODER_REGISTRY", "DeformableEncoder", "build_pixel_decoder"]
