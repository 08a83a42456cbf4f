"""The documents: links lead somewhere, commands parse, configuration keys exist, Python compiles and imports."""

import ast
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.cli import (
    analyze_model,
    benchmark,
    check_data,
    convert_weights,
    demo,
    merge_lora,
    slurm_train,
    train,
    visualize_data,
)
from grounding_dino.data.prepare import ade20k, cityscapes, coco, lvis, objects365, odinw, openimages, v3det
from grounding_dino.data.shapes import prepare
from grounding_dino.engine.optimizer import freeze_parameters
from grounding_dino.model_zoo import config_keys, get_cfg, get_config_file, list_configs, load_cfg
from grounding_dino.modeling.meta_arch.generalized_dino import GeneralizedDINO
from grounding_dino.modeling.meta_arch.glip import GLIP

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), ROOT / "datasets" / "README.md"])
TEXTS = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in DOCUMENTS}
PARSERS = {
    "train_net.py": train.build_parser,
    "demo/demo.py": demo.build_parser,
    "tools/convert_weights.py": convert_weights.build_parser,
    "tools/benchmark.py": benchmark._parser,
    "tools/analyze_model.py": analyze_model.build_parser,
    "tools/slurm_train.py": slurm_train.build_parser,
    "tools/merge_lora.py": merge_lora.build_parser,
    "tools/check_data.py": check_data.build_parser,
    "tools/visualize_data.py": visualize_data.build_parser,
    "datasets/prepare_shapes.py": prepare.get_parser,
    **{
        f"datasets/prepare_{module.__name__.rpartition('.')[2]}.py": module.build_parser
        for module in (ade20k, cityscapes, coco, lvis, objects365, odinw, openimages, v3det)
    },
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4}\S.*\n(?: {4}.*\n)*", re.MULTILINE)
PATH = re.compile(r"`((?:configs|demo|docker|tools|tests|grounding_dino)/[\w./-]+)`")
KEY = re.compile(r"\b[A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)+\b")
IN_BACKTICKS = re.compile(r"`[^`\n]+`")


def blocks(text, *languages):
    return [body for language, body in FENCE.findall(text) if language in languages]


def command_lines(text):
    """Every command of the shell blocks, of indented ones and in backticks, continued lines joined, as words."""
    prose = FENCE.sub("", text)
    inline = [command.strip("`") for command in IN_BACKTICKS.findall(prose) if command.startswith("`python ")]
    windows = [body.replace("\\", "/") for body in blocks(text, "powershell")]
    shell = [*blocks(text, "bash", "sh"), *windows, *INDENTED.findall(prose), *inline]
    lines = [line for body in shell for line in body.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def script_commands():
    """(document, script, arguments) of every `python SCRIPT ...` in the documents."""
    found = []
    for name, text in TEXTS.items():
        for words in command_lines(text):
            for place, word in enumerate(words[:-1]):
                if re.fullmatch(r"(.*/)?python3?", word) and words[place + 1].endswith(".py"):
                    found.append((name, words[place + 1], words[place + 2 :]))
    return found


COMMANDS = script_commands()
CONFIG_KEYS = set(config_keys(get_cfg()))
SECTIONS = {key.rsplit(".", count)[0] for key in CONFIG_KEYS for count in range(1, key.count(".") + 1)}


def slug(heading):
    """The anchor that a heading gets on code hosting pages."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_documents_are_found():
    names = {"README.md", "INSTALL.md", "GETTING_STARTED.md", "CONTRIBUTING.md", "MODEL_ZOO.md", "datasets/README.md"}
    assert names <= TEXTS.keys()
    assert {script for _, script, _ in COMMANDS} >= PARSERS.keys()


@pytest.mark.parametrize("name", TEXTS)
def test_relative_links_lead_somewhere(name):
    text = FENCE.sub("", TEXTS[name])
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE)]
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{name} links to {link}"


@pytest.mark.parametrize("name", TEXTS)
def test_references_are_defined(name):
    text = FENCE.sub("", TEXTS[name])
    defined = set(re.findall(r"^\[([^\]]+)\]: ", text, re.MULTILINE))
    assert set(re.findall(r"\]\[([^\]]+)\]", text)) <= defined


@pytest.mark.parametrize("name", TEXTS)
def test_paths_exist(name):
    for path in PATH.findall(TEXTS[name]):
        assert (ROOT / path).exists() or path.startswith("grounding_dino/configs"), f"{name} names {path}"


@pytest.mark.parametrize("name", TEXTS)
def test_tables_have_equal_rows(name):
    rows = re.findall(r"(?:^\|.*\n)+", FENCE.sub("", TEXTS[name]), re.MULTILINE)
    for table in rows:
        counts = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(counts) == 1, f"{name}: {table.splitlines()[0]}"


@pytest.mark.parametrize("name", TEXTS)
def test_configuration_keys_exist(name):
    words = " ".join([*IN_BACKTICKS.findall(FENCE.sub("", TEXTS[name])), *map(" ".join, command_lines(TEXTS[name]))])
    keys = set(KEY.findall(words))
    unknown = {key for key in keys - CONFIG_KEYS - SECTIONS if key.split(".")[0] in get_cfg()}
    assert not unknown, f"{name} names configuration keys that do not exist"


@pytest.mark.parametrize(("document", "script", "arguments"), COMMANDS, ids=range(len(COMMANDS)))
def test_commands_parse(document, script, arguments):
    assert (ROOT / script).is_file(), f"{document} names {script}"
    if script not in PARSERS:
        return
    if script == "tools/slurm_train.py":
        own = arguments.index("--")
        PARSERS[script]().parse_args(arguments[:own])
        script, arguments = "train_net.py", arguments[own + 1 :]
    options = PARSERS[script]().parse_args(arguments)
    if not hasattr(options, "opts"):
        return
    named = options.config_file or "shapes_tiny"  # benchmark.py takes several
    for configuration in [named] if isinstance(named, str) else named:
        if configuration in list_configs() or Path(configuration).suffix:
            load_cfg(get_config_file(configuration), options.opts or [])
    if script == "train_net.py":
        assert all("--" not in word for word in options.opts or [])


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize("arguments", [arguments for *_, arguments in COMMANDS if "SOLVER.FREEZE" in arguments])
def test_patterns_of_frozen_parameters_find_some(arguments):
    options = train.build_parser().parse_args(arguments)
    cfg = load_cfg(get_config_file(options.config_file), options.opts)
    model = {"GLIP": GLIP, "GeneralizedDINO": GeneralizedDINO}[cfg.MODEL.META_ARCHITECTURE](cfg)
    assert 0 < len(freeze_parameters(cfg, model)) < len(list(model.parameters()))


@pytest.mark.parametrize("script", sorted({script for _, script, _ in COMMANDS}))
def test_scripts_explain_themselves(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert not end.value.code
    assert "usage" in capsys.readouterr().out


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {
        words[1] for text in TEXTS.values() for words in command_lines(text) if words[0] == "make" and len(words) > 1
    } | {target for text in TEXTS.values() for target in re.findall(r"`make ([a-z-]+)", text)}
    assert {"demo", "test", "test-slow", "doctor"} <= named | targets
    assert named <= targets
    assert set(re.findall(r"^\.PHONY: (.*)", makefile, re.MULTILINE)[0].split()) <= targets


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if blocks(text, "python")])
def test_python_compiles_and_its_imports_exist(name):
    for body in blocks(TEXTS[name], "python"):
        tree = ast.parse(body)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), f"{name}: {ast.unparse(node)}"


def test_readme_example_is_short_and_its_pictures_exist():
    example = blocks(TEXTS["README.md"], "python")[0]
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 5
    pictures = re.findall(r"demo/pictures/[\w.]+", "".join(TEXTS.values()))
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)


def test_configurations_in_the_readme_exist():
    table = TEXTS["README.md"].partition("## Models")[2].partition("###")[0]
    named = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    assert len(named) >= 9 and set(named) <= set(list_configs())
