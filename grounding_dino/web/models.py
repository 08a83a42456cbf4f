"""The models that a page offers: named on the server's command line, loaded on first use, a few kept."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grounding_dino.predictor import GroundingPredictor

SHIPPED = ("shapes_tiny", "glip_shapes_tiny")


class Stopped(Exception):
    """A detection was given up, by its user or by its time limit."""


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A model by the name that the page shows.

    Attributes:
        config: a configuration's name or path.
        weights: its checkpoint; None for the one that the configuration names.
        reads_text: False for a model of fixed classes.
    """

    name: str
    config: str
    weights: str | None = None
    reads_text: bool = True


def served_models(named: Sequence[str], opts: Sequence[object] = ()) -> list[ServedModel]:
    """The models of the command line's `CONFIG` or `CONFIG=WEIGHTS`, in that order; without any, the shipped ones.

    Configurations that are there twice are told apart by the names of their weights' files.

    Raises:
        FileNotFoundError, ValueError: a configuration or a file that is not there, or the same model twice.
    """
    from grounding_dino.model_zoo import load_cfg

    pairs = [
        (config.strip(), weights.strip()) for config, _, weights in (text.partition("=") for text in named or SHIPPED)
    ]
    names = [Path(config).stem if Path(config).suffix in (".yaml", ".yml") else config for config, _ in pairs]
    shared = {name for name, times in Counter(names).items() if times > 1}
    found: dict[str, ServedModel] = {}
    for (config, weights), name in zip(pairs, names):
        if weights and "://" not in weights and not Path(weights).expanduser().exists():
            raise FileNotFoundError(
                f"there are no weights {weights!r} (--model {config}={weights}); name a file or folder"
            )
        reads_text = bool(load_cfg(config, opts).MODEL.TEXT_ENCODER.NAME)
        if name in shared:
            name = f"{name} ({Path(weights).name or 'its own weights'})"
        if name in found:
            raise ValueError(f"two models would be called {name!r}; give their weights' files different names")
        found[name] = ServedModel(name, config, weights or None, reads_text)
    return list(found.values())


class ModelShelf:
    """Predictors by name; the one that was used longest ago makes room. For one thread at a time."""

    def __init__(
        self, models: Sequence[ServedModel], load: Callable[[ServedModel], GroundingPredictor], capacity: int = 2
    ) -> None:
        """
        Args:
            load: makes the predictor of a model.
            capacity: predictors that are kept in memory.
        """
        self.models = {model.name: model for model in models}
        self._load = load
        self._capacity = capacity
        self._loaded: OrderedDict[str, GroundingPredictor] = OrderedDict()
        self._stop = threading.Event()

    def __contains__(self, name: str) -> bool:
        """Whether a model is in memory."""
        return name in self._loaded

    def get(self, name: str) -> GroundingPredictor:
        """The predictor of a model, loaded if need be.

        Raises:
            OSError, ValueError: as its loading does.
        """
        if name not in self._loaded:
            while len(self._loaded) >= self._capacity:
                self._loaded.popitem(last=False)  # before loading: two large models may not fit
            predictor = self._load(self.models[name])
            self._watch(predictor.model)
            self._loaded[name] = predictor
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def stop_by(self, event: threading.Event) -> None:
        """From now on models stop with :class:`Stopped` once `event` is set."""
        self._stop = event

    def check(self) -> None:
        """Raise :class:`Stopped` if the detection under way was given up."""
        if self._stop.is_set():
            raise Stopped

    def _watch(self, model: Any) -> None:
        """Let a running model be stopped between its parts; single layers keep their fast ways, which hooks end."""
        for module in model.modules():
            if next(module.children(), None) is not None:
                module.register_forward_pre_hook(lambda *_: self.check())
