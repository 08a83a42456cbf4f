"""Sides of a benchmark in processes of their own, which answer calls one at a time.

A side's peak memory, its allocator's settings and its caches are then its own. Calls and answers are lines of JSON on
the process's standard input and output; what libraries print there goes to its errors.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)

# What a process can be, and the methods that it answers.
ROLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "preparation": ("grounding_dino.cli.benchmark_preparation:Preparation", ("prepare", "count")),
    "ceiling": ("grounding_dino.cli.benchmark_sides:Ceiling", ("run",)),
    "ours": ("grounding_dino.cli.benchmark_sides:Ours", ("run", "memory", "parts", "chunk_parts", "compare")),
    "transformers": ("grounding_dino.cli.benchmark_sides:Transformers", ("run", "memory", "parts", "write_outputs")),
    "exported": ("grounding_dino.cli.benchmark_sides:Exported", ("run", "memory")),
    "train ours": ("grounding_dino.cli.benchmark_training_sides:OurTraining", ("run", "memory", "facts")),
    "train transformers": (
        "grounding_dino.cli.benchmark_training_sides:TransformersTraining",
        ("run", "memory", "facts"),
    ),
}
# Settings of the C library's allocator, which a side is given or is without.
_OF_ALLOCATOR = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
# Large blocks stay in the process instead of going back to the system, so that their pages are touched once.
TUNED_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 28)}


class WorkerError(RuntimeError):
    """A side could not do what it was asked for; the message is its own."""


class Worker:
    """The benchmark's end of one side's process."""

    def __init__(self, role: str, settings: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> None:
        """Start the process and let it build what `role` names; `environment` is added to the inherited one.

        Settings of the allocator are never inherited.

        Raises:
            WorkerError: it could not be built.
        """
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OF_ALLOCATOR)}
        package = str(Path(__file__).resolve().parents[2])
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**inherited, **(environment or {})},
        )
        try:
            self._ask({"role": role, "settings": dict(settings)})
        except BaseException:
            self.close()
            raise

    def call(self, method: str, **arguments: Any) -> Any:
        """What the side's method answers.

        Raises:
            WorkerError: it raised an error, or its process has ended.
        """
        return self._ask({"method": method, "arguments": arguments})

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, request: Mapping[str, Any]) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        reason = f"was ended by signal {-code}, maybe for want of memory" if code < 0 else f"ended with code {code}"
        return f"its process {reason}" + (f": {lines[-1]}" if lines else "")


def run_in_turn(
    workers: Mapping[Key, Worker], repeats: int, begin: Callable[[int], object] = lambda turn: None
) -> dict[Key, dict[str, Any]]:
    """What becomes of each worker's runs, round after round: `seconds` and `memory`, or its `error` if it has one.

    A side that fails is asked no more; the others go on. `begin` is called before each round.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in workers}
    errors: dict[Key, str] = {}
    for turn in range(repeats):
        begin(turn)
        for key, worker in workers.items():
            if key not in errors:
                try:
                    seconds[key].append(worker.call("run"))
                except WorkerError as error:
                    errors[key] = str(error)
    return {
        key: {"error": errors[key]}
        if key in errors
        else {
            "seconds": {"median": statistics.median(times), "lowest": min(times), "highest": max(times)},
            "memory": workers[key].call("memory"),
        }
        for key, times in seconds.items()
    }


def serve(requests: Iterable[str], answers: Any) -> None:
    """Build what the first line names, and answer each further line with one.

    An error is answered, too: the loop ends with its input, or with a side that could not be built.
    """
    side: Any = None
    methods: tuple[str, ...] = ()
    for line in requests:
        request = json.loads(line)
        try:
            if side is None:
                place, methods = ROLES[request["role"]]
                module, _, name = place.partition(":")
                side = getattr(importlib.import_module(module), name)(**request["settings"])
                result = None
            elif request["method"] in methods:
                result = getattr(side, request["method"])(**request["arguments"])
            else:
                raise ValueError(f"this side has no method {request['method']!r}, only {methods}")
            answer = {"result": result}
        except Exception as error:  # whatever breaks, the other sides are measured
            first_line = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {first_line}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if side is None:
            return


def main() -> None:
    """A side's process."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # prints of libraries are no answers
    serve(iter(sys.stdin.readline, ""), answers)


if __name__ == "__main__":
    main()
