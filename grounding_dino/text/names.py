"""How names of categories are compared, without torch."""

from __future__ import annotations


def normalised_name(name: str) -> str:
    """A name as prompts write it; names that are equal then are one to the model."""
    return " ".join(name.lower().split())
