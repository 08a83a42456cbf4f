"""Run what the documents show, on small stand-ins, in a copy of the checkout: `make docs-check`.

Commands run in the order of their document and in one folder, since later ones use what earlier ones wrote. Options
that make them short are added: two iterations, small pictures. What is not run is parsed by tests/test_documents.py;
here it is listed with the reason. The exit code is 1 if something failed.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from documents.commands import ENTRY_POINT, ROOT, TEXTS, Command, blocks, commands_of, parse
from documents.sandbox import PUBLISHED, make_sandbox

EXAMPLES = ROOT / "tests" / "examples"
TIME_LIMIT = 300  # seconds for one command
# Scripts that are parsed and never run, and why.
PARSED_ONLY = {
    "tools/benchmark.py": "measures for minutes; tests/cli runs it small",
    "tools/analyze_model.py": "counts models of full size; tests/cli runs it small",
    "tools/gpu_check.py": "needs a GPU",
    "tools/slurm_train.py": "needs a cluster; tests/cli runs it on this machine",
    "demo/app.py": "serves until it is stopped; tests/web runs it in a browser",
    "datasets/prepare_[!s]*.py": "needs the files of the data set; tests/data runs it on small ones",
    "tools/convert_data.py": "needs the files of the data set; tests/data runs it on small ones",
}
DATA_SETS = re.compile(r"berries|shapes_\w+|coco_2017_(train|val)")  # those that have stand-ins
NEEDS_NETWORK = re.compile(r"IDEA-Research/|hub\.py pu")
PLACEHOLDERS = re.compile(r"ADDRESS_OR_FILE|PATH$|\.\.\.|/path/to|NAME=|FILE FOLDER|--webcam|--num-machines")
SMALL_TEST = "INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 96 DATALOADER.NUM_WORKERS 0"
SMALL_TRAINING = (
    "SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 SOLVER.WARMUP_ITERS 0 SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_PERIOD 2 "
    f"SOLVER.STEPS () INPUT.MIN_SIZE_TRAIN (64,) INPUT.MAX_SIZE_TRAIN 96 {SMALL_TEST}"
)
TRAINING = "train_net.py", "tests/examples/train_mine.py"
SMALL_SHAPES = "--num-train 12 --num-val 4 --num-unseen 4 --size 96 --workers 1 --quiet"


@dataclass(frozen=True)
class Step:
    """Something that a document shows: a command or program, and the words that run it, or why it is not run."""

    document: str
    text: str
    words: list[str]
    reason: str | None = None


def plan(name: str) -> Iterator[Step]:
    """What to do about a document's commands, and then about its programs."""
    for command in commands_of(name):
        reason = why_not(command)
        yield Step(name, command.text, [] if reason else words_to_run(command), reason)
    for body in blocks(TEXTS[name], "python"):
        reason = "a file; tests/examples/test_examples.py runs it" if is_example(body) else None
        reason = "needs a network" if NEEDS_NETWORK.search(body) else reason
        yield Step(name, body.strip(), [sys.executable, "-c", body], reason)


def is_example(body: str) -> bool:
    """Whether a program is one of the files under tests/examples, which pages include."""
    return any(file.read_text(encoding="utf-8").strip() == body.strip() for file in EXAMPLES.glob("*.py"))


def why_not(command: Command) -> str | None:
    """Why a command is not run; None if it is."""
    reason = command.why_not_run()
    script = command.script
    if reason or script is None:
        return reason
    for pattern, why in PARSED_ONLY.items():
        if fnmatch.fnmatch(script, pattern):
            return why
    if NEEDS_NETWORK.search(command.text):
        return "needs a network"
    if PLACEHOLDERS.search(command.text):
        return "names a placeholder"
    if command.is_mention:
        return None if "--help" in command.arguments else "names a command"
    return why_not_configuration(command)


def why_not_configuration(command: Command) -> str | None:
    """Whether a command's configuration or data sets have no stand-in."""
    from grounding_dino.model_zoo import get_config_file, load_cfg

    options = parse(command.script or "", command.arguments)
    config = getattr(options, "config_file", None)
    made = bool(config) and config.startswith("output/")  # by a command before it
    if config and not made and "shapes_tiny" not in config and config not in PUBLISHED:
        return f"{config} has no small stand-in"
    if command.script not in TRAINING:
        return None
    cfg = load_cfg(get_config_file(config or "shapes_tiny"), options.opts)
    used = [*cfg.DATASETS.TEST, *cfg.TEST.RETAINED, *([] if options.eval_only else cfg.DATASETS.TRAIN)]
    given = {dataset.partition("=")[0] for dataset in options.dataset or ()}
    missing = [name for name in used if name not in given and not DATA_SETS.fullmatch(name)]
    return f"{missing[0]} has no small stand-in" if missing else None


def words_to_run(command: Command) -> list[str]:
    """A command with what makes it short."""
    if command.script is None:
        return [sys.executable, *command.words[1:]] if command.module else list(command.words)
    arguments = command.arguments
    if "--help" in arguments:
        pass
    elif command.script in TRAINING or arguments[:1] == ["train"]:
        arguments += shlex.split(SMALL_TEST if "--eval-only" in arguments else SMALL_TRAINING)
    elif command.script == "datasets/prepare_shapes.py":
        arguments += shlex.split(SMALL_SHAPES)
    program = ["-m", "grounding_dino.cli.main"] if command.script == ENTRY_POINT else [command.script]
    return [sys.executable, *program, *arguments]


def run(step: Step, folder: Path, environment: dict[str, str]) -> str | None:
    """Run one step; None if it went well, else the end of what it said."""
    try:
        done = subprocess.run(
            step.words, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        return str(error)
    said = (done.stdout + done.stderr).strip().splitlines()
    return None if done.returncode == 0 else "\n".join(said[-15:]) + f"\n(exit code {done.returncode})"


def check(steps: Sequence[Step], folder: Path) -> int:
    """Run the steps in a fresh copy at `folder`, with a line for each; returns the number of failures."""
    print(f"copying the checkout to {folder}", flush=True)
    environment = make_sandbox(ROOT, folder)
    results: Counter[str] = Counter()
    for number, step in enumerate(steps, 1):
        start = time.monotonic()
        failure = None if step.reason else run(step, folder, environment)
        result = "FAILED" if failure else "not run" if step.reason else "ok"
        results[result] += 1
        print(f"[{number}/{len(steps)}] {result} {time.monotonic() - start:.0f} s  {describe(step)}", flush=True)
        if failure:
            print(failure, flush=True)
    print(", ".join(f"{count} {result}" for result, count in sorted(results.items())))
    return results["FAILED"]


def describe(step: Step) -> str:
    """A step in a line."""
    lines = step.text.splitlines()
    text = f"{lines[0]} ... ({len(lines)} lines)" if len(lines) > 1 else lines[0]
    return f"{step.document}: {text}" + (f"  [{step.reason}]" if step.reason else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Check documents; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make docs-check", description=__doc__)
    parser.add_argument("documents", nargs="*", metavar="DOCUMENT", help="such as README.md; default: all")
    parser.add_argument("-k", dest="containing", default="", metavar="TEXT", help="only what contains this text")
    parser.add_argument("--list", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument(
        "--folder", type=Path, metavar="NEW", help="work there, and keep it; default: a temporary folder"
    )
    args = parser.parse_args(argv)
    unknown = set(args.documents) - TEXTS.keys()
    if unknown:
        parser.error(f"{sorted(unknown)[0]} is no document; choose from {', '.join(TEXTS)}")
    steps = [step for name in args.documents or TEXTS for step in plan(name) if args.containing in step.text]
    if args.list:
        print("\n".join(("     " if step.reason else "run  ") + describe(step) for step in steps))
        return 0
    if args.folder:
        args.folder.mkdir(parents=True)
        return 1 if check(steps, args.folder.resolve()) else 0
    with tempfile.TemporaryDirectory(prefix="docs-check-") as folder:
        return 1 if check(steps, Path(folder).resolve()) else 0


if __name__ == "__main__":
    sys.exit(main())
