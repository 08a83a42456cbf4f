"""Checkpoints of every origin: reading, recognising, renaming, loading and writing."""

from grounding_dino.checkpoint.files import CheckpointError

__all__ = ["CheckpointError"]
