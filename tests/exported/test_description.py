"""What an exported file says of its model, written and read."""

from __future__ import annotations

from grounding_dino.exported.description import (
    ClassDescription,
    DenseDescription,
    MaskDescription,
    ModelDescription,
    TextDescription,
)

import pytest


@pytest.mark.parametrize(
    "description",
    [
        ModelDescription("a", text=TextDescription(sub_sentence=False)),
        ModelDescription("b", "glip", "BGR", text=TextDescription(), dense=DenseDescription((8, 16))),
        ModelDescription(
            "c", padding_counts=True, classes=ClassDescription(("x", "y"), (1, 2), things=(0,)), masks=MaskDescription()
        ),
    ],
    ids=lambda description: description.name,
)
def test_a_description_comes_back(description: ModelDescription) -> None:
    assert ModelDescription.from_json(description.to_json()) == description


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "Expecting property name"),
        ("[1]", "not of version 1"),
        ('{"version": 2}', "not of version 1"),
        ('{"version": 1, "name": "a"}', "either a text or fixed classes"),
        ('{"version": 1, "name": "a", "text": {"colour": 3}}', "colour"),
        ('{"version": 1, "name": "a", "text": 5}', "5 stands where the fields of a TextDescription are expected"),
        ('{"version": 1, "name": "a", "classes": {"names": ["x"], "columns": []}}', "1 names of classes for 0"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be read .*{fault}.*export it anew"):
        ModelDescription.from_json(text)
