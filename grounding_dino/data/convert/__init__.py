"""Annotation files from one format into another; see :func:`convert`."""

from grounding_dino.data.convert.conversion import FORMATS, NAME_MODES, convert

__all__ = ["FORMATS", "NAME_MODES", "convert"]
