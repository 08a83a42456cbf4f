"""How names of categories are compared, without torch."""

from __future__ import annotations


def normalised_name(name: str) -> str:
    """A name as prompts write it; names that are equal then are one to the model."""
    return " ".join(name.lower().split())


def names_in(text: str) -> list[str]:
    """The names of a text that separates them by periods or lines: "cat . traffic light ."."""
    return [name.strip() for line in text.splitlines() for name in line.split(".") if name.strip()]
