"""The commands and programs that the documents show, and what kind of check each of them gets.

A command is run by `make docs-check`, parsed by the fast tests, or in `NOT_RUN`, with the reason. One that is none of
these is an error, so that nothing is shown that nobody looks at.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from grounding_dino.cli.arguments import ENTRY_POINT
from grounding_dino.cli.main import COMMANDS as ENTRY_POINTS
from grounding_dino.thresholds import CategoryThresholds

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), ROOT / "datasets" / "README.md", *(ROOT / "docs").rglob("*.md")])
TEXTS = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in DOCUMENTS}

# The first words of commands that are neither run nor parsed, and why.
NOT_RUN = {
    "pip": "changes the environment of whoever runs the check; tests/test_packaging.py installs and runs the wheel",
    "py": "Windows",
    ".venv/Scripts/Activate.ps1": "Windows",
    "source": "changes the shell's environment",
    "docker": "needs a running docker; the Dockerfile is read by tests/test_packaging.py",
    "apt-get": "needs an administrator",
    "dnf": "needs an administrator",
    "xcode-select": "macOS",
    "conda": "needs conda",
    "torchrun": "several processes that meet over a network; its arguments of train_net.py are parsed",
    "make": "installs first; targets are looked up in the Makefile, their commands are run elsewhere",
    ".ci/run": "runs all tests",
    "curl": "needs a network",
    "nvidia-smi": "needs a GPU",
}
# `python -m MODULE`: modules of others, which are not run.
MODULES_NOT_RUN = {
    "venv": "creates an environment",
    "pytest": "runs the tests",
    "http.server": "serves until it is stopped",
    "build": "makes an environment of its own; tests/test_packaging.py builds the wheel",
}
SHELL = {"ln", "export", "cd", "ls", "cat", "mkdir", "head", "cp"}  # run as they stand, in the sandbox

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4}\S.*\n(?: {4}.*\n)*", re.MULTILINE)
IN_BACKTICKS = re.compile(r"`[^`\n]+`")
SNIPPET = re.compile(r'^-{2}8<-{2} "(.+)"$', re.MULTILINE)
PYTHON = re.compile(r"(.*/)?python3?")


@dataclass(frozen=True)
class Command:
    """A command of a document as words, without variables before it; `text` is how it is written."""

    document: str
    words: tuple[str, ...]
    text: str

    @property
    def script(self) -> str | None:
        """The script of this project that is called, "grounding-dino" for the entry point; None for anything else."""
        first = self.words[0]
        if first == ENTRY_POINT:
            return ENTRY_POINT
        behind = self.words[1] if PYTHON.fullmatch(first) and len(self.words) > 1 else None
        if first == "torchrun":
            behind = next(word for word in self.words if word.endswith(".py"))
        return behind if behind and behind.endswith(".py") else None

    @property
    def arguments(self) -> list[str]:
        """What the script is given."""
        assert self.script is not None
        return list(self.words[self.words.index(self.script) + 1 :])

    @property
    def module(self) -> str | None:
        """The module of `python -m MODULE`."""
        named = PYTHON.fullmatch(self.words[0]) and self.words[1:2] == ("-m",)
        return self.words[2] if named else None

    @property
    def is_mention(self) -> bool:
        """Whether a command only asks for help, or names an existing command of the entry point.

        Raises:
            LookupError: the entry point has no such command.
        """
        if self.script == ENTRY_POINT and not self.arguments[0].startswith("-"):
            ENTRY_POINTS[self.arguments[0]]
        return "--help" in self.arguments or (self.script == ENTRY_POINT and len(self.arguments) == 1)

    def why_not_run(self) -> str | None:
        """The reason why this kind of command is never run; None where it can be.

        Raises:
            LookupError: nobody said what to do with such a command.
        """
        first = self.words[0].rpartition(".venv/bin/")[2] or self.words[0]
        if first in NOT_RUN:
            return NOT_RUN[first]
        if self.module is not None and not self.module.startswith("grounding_dino"):
            return MODULES_NOT_RUN[self.module]
        if self.script is None and self.module is None and first not in SHELL:
            raise LookupError(f"{self.document}: nothing checks {self.text!r}; see tests/documents/commands.py")
        return None


def blocks(text: str, *languages: str) -> list[str]:
    """The bodies of fenced blocks in one of `languages`, with files that they include read in."""
    bodies = [body for language, body in FENCE.findall(text) if language in languages]
    return [SNIPPET.sub(lambda match: (ROOT / match[1]).read_text(encoding="utf-8"), body) for body in bodies]


def command_lines(text: str) -> Iterator[str]:
    """Every command of the shell blocks, of indented ones and in backticks, continued lines joined."""
    prose = FENCE.sub("", text)
    inline = [command.strip("`") for command in IN_BACKTICKS.findall(prose)]
    inline = [command for command in inline if re.match(rf"(python|{ENTRY_POINT}) (?!SCRIPT|[A-Z]+$)\S", command)]
    windows = [body.replace("\\", "/") for body in blocks(text, "powershell")]
    indented = [body for body in INDENTED.findall(prose) if body.strip().startswith("python ")]
    for body in (*blocks(text, "bash", "sh"), *windows, *indented, *inline):
        yield from (line.strip() for line in body.replace("\\\n", " ").splitlines())


def commands_of(name: str) -> list[Command]:
    """The commands of a document, those that `&&` joins one by one."""
    found = []
    for line in command_lines(TEXTS[name]):
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            while command and re.fullmatch(r"\w+=.*", command[0]):
                command = command[1:]
            if command:
                found.append(Command(name, tuple(command), shlex.join(command)))
    return found


COMMANDS = [command for name in TEXTS for command in commands_of(name)]


class _Parsed(Exception):
    """Carries what a script's parser made of its arguments."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options


def parse(script: str, arguments: Sequence[str]) -> argparse.Namespace:
    """What a script's own parser makes of `arguments`; the script goes no further.

    Raises:
        SystemExit: the parser refuses them.
    """
    if script == ENTRY_POINT:
        module, arguments = f"grounding_dino.cli.{ENTRY_POINTS[arguments[0]][0]}", arguments[1:]
    else:
        source = (ROOT / script).read_text(encoding="utf-8")
        module = re.findall(r"^from (\S+) import main$", source, re.MULTILINE)[0]
    main = importlib.import_module(module).main
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> argparse.Namespace:
        raise _Parsed(parse_args(parser, *args, **kwargs))  # type: ignore[call-overload]

    made_by_others = mock.patch.object(CategoryThresholds, "load", lambda path: CategoryThresholds())  # read in parsing
    try:
        with mock.patch.object(argparse.ArgumentParser, "parse_args", stop), made_by_others:
            main(list(arguments))
    except _Parsed as parsed:
        return parsed.options
    raise AssertionError(f"{script} does not parse its arguments")
