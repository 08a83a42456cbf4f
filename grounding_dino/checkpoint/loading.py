"""Filling a model from a checkpoint of any origin: strictly, or in parts where that is asked for by name."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grounding_dino.checkpoint.download import local_path
from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.checkpoint.fitting import fit_heads, select_coco_rows
from grounding_dino.checkpoint.likely_config import likely_config
from grounding_dino.checkpoint.mapped import load_and_release
from grounding_dino.checkpoint.origins import LoadedCheckpoint, load_checkpoint
from grounding_dino.checkpoint.report import LoadReport, listed

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Parameters that training alone uses: a checkpoint that has them loads into a model without.
_TRAINING_ONLY = re.compile(r"denoising\.")
# Buffers whose values the configuration gives, and counters on which no number depends.
_NEEDLESS = re.compile(r"pixel_(mean|std)$|.*\.num_batches_tracked$")
# What prompt tuning learns. Zeros, with which it begins, change nothing, so files without (all released ones) fit.
_PROMPT_VECTORS = "prompt_vectors.weight"
# What another backbone has otherwise: all but the norms of its outputs, of which a detector may use more or fewer.
_BACKBONE = re.compile(r"backbone\.(?!norms\.)(?!.*\.num_batches_tracked$)")


def load_weights(
    model: nn.Module, path_or_url: str | os.PathLike[str], ignore: Iterable[str] = (), warm_start: bool = False
) -> LoadReport:
    """Fill `model` from a checkpoint of any origin (file, folder or URL), converting to its number formats.

    Every tensor of the checkpoint and every parameter of the model must be accounted for, unless `ignore` (regular
    expressions on our names) or `warm_start` (take what fits) says otherwise. Also a warm start refuses another
    backbone, unless `ignore` names it. Prompt vectors that a checkpoint lacks become zeros.

    Raises:
        CheckpointError: unreadable or unknown file, or names or shapes that do not fit; the message lists them and says
            which configuration fits. The model is unchanged then.
    """
    return load_checkpoint_into(model, load_checkpoint(local_path(path_or_url), mmap=True), ignore, warm_start)


def load_checkpoint_into(
    model: nn.Module, checkpoint: LoadedCheckpoint, ignore: Iterable[str] = (), warm_start: bool = False
) -> LoadReport:
    """As :func:`load_weights`, of a checkpoint that is already read."""
    expected = model.state_dict()
    patterns = [re.compile(pattern) for pattern in ignore]
    state = fit_heads(checkpoint.state, expected)
    state.update({name: tensor for name, tensor in checkpoint.extras.items() if name in expected})  # counters of norms
    selected: tuple[str, ...] = ()
    if warm_start:
        state, selected = select_coco_rows(state, expected)
    ignored = {name for name in {*state, *expected} if any(p.search(name) for p in patterns)}
    if patterns and not ignored:
        logger.warning("MODEL.WEIGHTS_IGNORE %s matches no name", [p.pattern for p in patterns])
    report = dataclasses.replace(_compare(checkpoint, state, expected, ignored), selected=selected)
    problems = _problems(checkpoint, report)
    if problems and not warm_start:
        raise CheckpointError(_explain(checkpoint, report, problems))
    _refuse_another_backbone(checkpoint, report, state)
    if not report.taken:
        raise CheckpointError(f"nothing in {checkpoint.path} fits the model; {likely_config(checkpoint.state)}")
    untuned = {name: torch.zeros(expected[name].shape) for name in report.new if name == _PROMPT_VECTORS}
    load_and_release(model, {**{name: state[name] for name in report.taken}, **untuned}, checkpoint.path)
    if untuned:
        logger.info("%s has no prompt vectors (MODEL.DENSE_HEAD.PROMPT_VECTORS): they begin as zeros", checkpoint.path)
    level = logging.WARNING if problems else logging.INFO
    logger.log(level, "%s", report)
    return report


def load_average_into(model: nn.Module, rest: Mapping[str, Any]) -> bool:
    """Put averaged weights (SOLVER.EMA) over those of the checkpoint that held `rest`; without any, say so in the log.

    Returns:
        Whether there were any.

    Raises:
        CheckpointError: they are those of another model.
    """
    average = rest.get("ema")
    if not isinstance(average, Mapping) or not isinstance(average.get("weights"), Mapping):
        logger.info("SOLVER.EMA.ENABLED_ON is True, but the checkpoint holds no averaged weights: its own are used")
        return False
    expected, weights = model.state_dict(), average["weights"]
    odd = [name for name, tensor in weights.items() if name not in expected or tensor.shape != expected[name].shape]
    if odd:
        raise CheckpointError(f"the averaged weights (SOLVER.EMA) do not fit the model: {listed(odd)}")
    model.load_state_dict(dict(weights), strict=False)
    logger.info(
        "averaged weights of %s steps are used (SOLVER.EMA.ENABLED_ON): %d tensors", average["steps"], len(weights)
    )
    return True


def _compare(
    checkpoint: LoadedCheckpoint, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], ignored: set[str]
) -> LoadReport:
    common = [name for name in expected if name in state and name not in ignored]
    fits = {name for name in common if state[name].shape == expected[name].shape}
    return LoadReport(
        path=checkpoint.path,
        origin=checkpoint.origin,
        taken=tuple(name for name in common if name in fits),
        new=tuple(n for n in expected if n not in state and n not in ignored and not _NEEDLESS.match(n)),
        dropped=(*(n for n in state if n not in expected and n not in ignored), *checkpoint.unknown),
        misshapen=tuple(
            f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in common
            if name not in fits
        ),
        ignored=tuple(sorted(ignored)),
    )


def _problems(checkpoint: LoadedCheckpoint, report: LoadReport) -> dict[str, list[str]]:
    """What a strict load does not accept."""
    tolerated = [re.compile(pattern) for pattern in (*checkpoint.absent, re.escape(_PROMPT_VECTORS))]
    missing = [name for name in report.new if not any(pattern.match(name) for pattern in tolerated)]
    unexpected = [name for name in report.dropped if not _TRAINING_ONLY.match(name) and not _NEEDLESS.match(name)]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": list(report.misshapen)}
    return {word: names for word, names in problems.items() if names}


def _refuse_another_backbone(checkpoint: LoadedCheckpoint, report: LoadReport, state: Mapping[str, Tensor]) -> None:
    """A warm start takes a backbone as a whole, or, where the checkpoint has none or patterns say so, not at all."""
    ignored = set(report.ignored)
    if not any(_BACKBONE.match(name) and name not in ignored for name in state):
        return
    differing = {
        "of another shape": [text for text in report.misshapen if _BACKBONE.match(text)],
        "missing": [name for name in report.new if _BACKBONE.match(name)],
        "unexpected": [name for name in report.dropped if _BACKBONE.match(name)],
    }
    found = [f"{len(names)} {word}: {listed(names, 3)}" for word, names in differing.items() if names]
    if found:
        raise CheckpointError(
            f"{checkpoint.path} ({checkpoint.origin}) is of another backbone than the model: of its tensors are "
            f"{'; '.join(found)}.\n  {likely_config(checkpoint.state)}.\n  To take all but the backbone on purpose: "
            "MODEL.WARM_START_ON True with MODEL.WEIGHTS_IGNORE \"['^backbone']\"."
        )


def _explain(checkpoint: LoadedCheckpoint, report: LoadReport, problems: Mapping[str, Sequence[str]]) -> str:
    lines = [f"{checkpoint.path} ({checkpoint.origin}) does not fit the model ({len(report.taken)} tensors would):"]
    lines += [f"  {len(names)} {word}: {listed(names)}" for word, names in problems.items()]
    lines.append(f"  {likely_config(checkpoint.state)}.")
    if _PROMPT_VECTORS in checkpoint.state and _PROMPT_VECTORS not in report.taken:
        rows = len(checkpoint.state[_PROMPT_VECTORS])
        lines.append(f"  It has learned prompt vectors: set MODEL.DENSE_HEAD.PROMPT_VECTORS {rows}.")
    training = [name for names in problems.values() for name in names if _TRAINING_ONLY.match(name)]
    if training:
        lines.append(
            f"  Only training uses {listed(training, 2)}: set MODEL.DENOISING as it was, or start it anew with "
            "MODEL.WEIGHTS_IGNORE \"['^denoising']\"."
        )
    if len(training) < sum(map(len, problems.values())):
        lines.append(
            "  To take only a part on purpose: MODEL.WEIGHTS_IGNORE (patterns), or what fits: MODEL.WARM_START_ON True "
            "(--warm-start of train_net.py)."
        )
    return "\n".join(lines)
