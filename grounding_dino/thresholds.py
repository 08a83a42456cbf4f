"""Least scores of detections, one for each category, and the file they are kept in. No torch here.

Scores of different categories mean different things: 0.3 may be right nine times of ten for one, and every second time
for another. `tools/calibrate_thresholds.py` finds thresholds from labelled pictures.
"""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from grounding_dino.text.names import normalised_name
from grounding_dino.whole_file import whole_file

BOX_THRESHOLD = 0.35  # the authors' demo has it, and the next
TEXT_THRESHOLD = 0.25  # of words of a caption
FORMAT = "grounding_dino.thresholds"
VERSION = 1

_REMEDY = "write it with tools/calibrate_thresholds.py"


@dataclass(frozen=True)
class CategoryThresholds:
    """The least score of a detection by its category's name.

    Names are compared as prompts write them: "Traffic  Light" is "traffic light".

    Attributes:
        default: of names that `categories` does not have, in [0, 1].
        categories: least scores in [0, 1] by name.
        facts: how they were found, for readers of the file; anything that json holds.

    Raises:
        TypeError, ValueError: a threshold that is no number in [0, 1], a name that is no text, or one that is there
            twice.
    """

    default: float = BOX_THRESHOLD
    categories: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_share("the default threshold", self.default)
        if not isinstance(self.categories, Mapping):
            raise TypeError(f"thresholds of categories must be given as {{name: number}}, not {self.categories!r}")
        first: dict[str, str] = {}
        for name, value in self.categories.items():
            if not isinstance(name, str) or not name.strip():
                raise TypeError(f"a category with a threshold must have a name, not {name!r}")
            check_share(f"the threshold of {name!r}", value)
            other = first.setdefault(normalised_name(name), name)
            if other != name:
                raise ValueError(f"{other!r} and {name!r} are one name to the model; give one of them a threshold")

    @cached_property
    def _by_name(self) -> dict[str, float]:
        return {normalised_name(name): float(value) for name, value in self.categories.items()}

    def of(self, name: str) -> float:
        """The least score of a category, `default` where it has none of its own."""
        return self._by_name.get(normalised_name(name), self.default)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CategoryThresholds:
        """The thresholds of a file that :meth:`save` has written.

        Raises:
            FileNotFoundError, ValueError: with a sentence that names the file and what is wrong in it.
        """
        content = _read(Path(path))
        try:
            return cls._from_json(content)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the file of thresholds {str(path)!r} cannot be used: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file; the name is there only once it is whole."""
        head = {"format": FORMAT, "version": VERSION, "default": self.default, "categories": dict(self.categories)}
        with whole_file(path) as file:
            json.dump({**head, **self.facts, **head}, file, indent=1, ensure_ascii=False)
            file.write("\n")

    @classmethod
    def _from_json(cls, content: Any) -> CategoryThresholds:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f'it is no such file, which would say "format": "{FORMAT}"; {_REMEDY}')
        if content.get("version") != VERSION:
            raise ValueError(
                f'its "version" is {content.get("version")!r}, but this release reads {VERSION}; {_REMEDY} again'
            )
        for key in ("default", "categories"):
            if key not in content:
                raise ValueError(f'it has no "{key}"; {_REMEDY}')
        facts = {key: content[key] for key in content.keys() - {"format", "version", "default", "categories"}}
        return cls(content["default"], content["categories"], dict(sorted(facts.items())))


Threshold = float | CategoryThresholds


def check_share(what: str, value: Any) -> None:
    """See that `value` is a number in [0, 1].

    Raises:
        TypeError, ValueError: it is not; the sentence begins with `what`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{what} must be a number in [0, 1], such as 0.3, not {value!r}")
    real: Any = value  # a whole number may be too large for a float
    if not 0.0 <= real <= 1.0:
        raise ValueError(f"{what} must lie in [0, 1], got {value!r}")


def check_box_threshold(value: Any) -> None:
    """See that `value` is one threshold, or thresholds by category; raises as :func:`check_share`."""
    if not isinstance(value, CategoryThresholds):
        check_share("box_threshold", value)


def check_thresholds(box_threshold: Any, text_threshold: Any, caption: Any) -> None:
    """See that a predictor can be called with these.

    Raises:
        TypeError, ValueError: as :func:`check_share`; thresholds by category beside a caption.
    """
    check_box_threshold(box_threshold)
    check_share("text_threshold", text_threshold)
    if caption is not None and isinstance(box_threshold, CategoryThresholds):
        raise ValueError(
            "thresholds by category go with categories: a caption's detections have none, and their scores are of "
            "single words; give box_threshold as a number"
        )


def thresholds_of(value: Threshold, names: Iterable[str]) -> list[float]:
    """The least score of each name."""
    if isinstance(value, CategoryThresholds):
        return [value.of(name) for name in names]
    return [float(value) for _ in names]


def _read(path: Path) -> Any:
    """What a json file holds, no key twice.

    Raises:
        FileNotFoundError, ValueError: it is not there, or is no such file.
    """
    if path.is_dir():
        raise ValueError(f"the file of thresholds {str(path)!r} is a folder; name the json file in it")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file of thresholds {str(path)!r}; {_REMEDY}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"the file of thresholds {str(path)!r} is no text in UTF-8: {error}") from error
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the file of thresholds {str(path)!r} is no json: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it says {key!r} twice")
        found[key] = value
    return found
