"""A predictor's text arguments -> what each picture is asked for, checked; without torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from grounding_dino.text.names import normalised_name

# What a picture is asked for: `caption`, or `categories`; and the indices of names that are `not_wanted`, if any.
Asked = dict[str, Any]


def prompts_of(categories: Any, caption: Any, not_wanted: Any, count: int | None) -> list[Asked]:
    """What each picture is asked for by a model with text; `count` None is for as many pictures as there are texts.

    Names that are not wanted stand behind the wanted ones in `categories`, so that indices of these stay as they are.

    Raises:
        TypeError: something else than texts.
        ValueError: both kinds of prompt, none, or another number of prompts than of pictures; a name that is both
            wanted and not; names that are not wanted beside a caption.
    """
    if (categories is None) == (caption is None):
        given = "both are" if categories is not None else "neither is"
        raise ValueError(f"say what to look for with either categories=[...] or caption='...'; {given} given")
    if caption is not None:
        if not_wanted is not None:
            raise ValueError(
                "not_wanted goes with categories: the detections of a caption are named by its words, and no name "
                "competes with them; give what you look for as categories, or leave not_wanted out"
            )
        return _captions(caption, count)
    names, is_shared = _names_of(categories, "categories")
    if not_wanted is None:
        return [{"categories": list(each)} for each in _one_each(names, is_shared, count, "lists of categories")]
    unwanted, is_unwanted_shared = _names_of(not_wanted, "not_wanted")
    if count is None and not (is_shared and is_unwanted_shared):
        count = len(unwanted if is_shared else names)
    wanted_lists = _one_each(names, is_shared, count, "lists of categories")
    unwanted_lists = _one_each(unwanted, is_unwanted_shared, count, "lists of not_wanted names")
    return [_beside(list(wanted), list(others)) for wanted, others in zip(wanted_lists, unwanted_lists)]


def class_prompts(
    classes: Sequence[str], categories: Any, caption: Any, not_wanted: Any, count: int | None
) -> list[Asked]:
    """As :func:`prompts_of` of a model that finds `classes` and reads no text: of them some may be not wanted.

    Raises:
        TypeError: not_wanted is something else than names.
        ValueError: any text, or a name that is not wanted and no class.
    """
    if categories is not None or caption is not None:
        raise ValueError(
            f"the model finds {len(classes)} fixed classes ({', '.join(classes[:3])}, ...) and reads no "
            "text: leave out categories and caption, and choose among its detections by their labels"
        )
    if not_wanted is None:
        return [{}] * (1 if count is None else count)
    names, is_shared = _names_of(not_wanted, "not_wanted")
    lists = _one_each(names, is_shared, count, "lists of not_wanted names")
    places: dict[str, list[int]] = {}
    for index, name in enumerate(classes):
        places.setdefault(normalised_name(name), []).append(index)
    return [{"not_wanted": _class_indices(each, places)} for each in lists]


def _class_indices(names: Iterable[Any], places: dict[str, list[int]]) -> tuple[int, ...]:
    indices: set[int] = set()
    for name in names:
        written = _written(name)
        if written not in places:
            close = difflib.get_close_matches(written, places, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"not_wanted names {name!r}, which is none of the model's {len(places)} classes{hint}")
        indices.update(places[written])
    return tuple(sorted(indices))


def _beside(wanted: list[Any], unwanted: list[Any]) -> Asked:
    """The names of one picture, with those that are not wanted behind them, each of these once."""
    written = {normalised_name(name): name for name in wanted if isinstance(name, str)}
    fresh: dict[str, str] = {}
    for name in unwanted:
        if _written(name) in written:
            raise ValueError(f"{written[_written(name)]!r} is in categories and in not_wanted; leave it out of one")
        fresh.setdefault(_written(name), name)
    if not wanted or not fresh:  # an empty list is refused where prompts are written
        return {"categories": wanted}
    names = [*wanted, *fresh.values()]
    return {"categories": names, "not_wanted": tuple(range(len(wanted), len(names)))}


def _written(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise TypeError(f"not_wanted must be a list of names, and {name!r} is none")
    return normalised_name(name)


def _captions(caption: Any, count: int | None) -> list[Asked]:
    if not isinstance(caption, (str, list, tuple)):
        raise TypeError(f"caption must be a text, or a list with one a picture, not {caption!r}")
    captions = _one_each(caption, isinstance(caption, str), count, "captions")
    for text in captions:
        if not isinstance(text, str):
            raise TypeError(f"each picture's caption must be a text, not {text!r}")
    return [{"caption": text} for text in captions]


def _names_of(names: Any, argument: str) -> tuple[list[Any], bool]:
    """The names, and True, if they are for all pictures; else each picture's names, and False."""
    if isinstance(names, str):
        remedy = "give [...] of names" + (", or caption=..." if argument == "categories" else "")
        raise TypeError(f"{argument} must be a list of names, not the string {names!r}; {remedy}")
    if not isinstance(names, Iterable):
        raise TypeError(f"{argument} must be a list of names, or a list with one such list a picture, not {names!r}")
    given = list(names)
    if not any(isinstance(item, Iterable) and not isinstance(item, str) for item in given):
        return given, True
    for index, item in enumerate(given):
        if isinstance(item, str) or not isinstance(item, Iterable):
            raise TypeError(
                f"the {argument} of picture {index} must be a list of names, not {item!r}: one list for all pictures "
                "holds only names, a list of one a picture only lists"
            )
    return given, False


def _one_each(texts: Any, is_shared: bool, count: int | None, what: str) -> list[Any]:
    if is_shared:
        return [texts] * (1 if count is None else count)
    if count is not None and len(texts) != count:
        raise ValueError(f"there are {len(texts)} {what} for {count} pictures; give one for all, or one each")
    return list(texts)
