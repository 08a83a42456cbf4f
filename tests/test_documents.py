"""The documents: links lead somewhere, commands parse, configuration keys exist, Python compiles and imports."""

import ast
import importlib
import re
import runpy
import sys
from pathlib import Path

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.cli import train
from grounding_dino.engine.optimizer import freeze_parameters
from grounding_dino.model_zoo import config_keys, get_cfg, get_config_file, list_configs, load_cfg
from grounding_dino.modeling.meta_arch.generalized_dino import GeneralizedDINO
from grounding_dino.modeling.meta_arch.glip import GLIP

import pytest
from documents.commands import COMMANDS, ENTRY_POINT, FENCE, IN_BACKTICKS, ROOT, TEXTS, blocks, commands_of, parse

SCRIPTS = [command for command in COMMANDS if command.script]
PATH = re.compile(r"`((?:configs|demo|docs|docker|tools|tests|grounding_dino)/[\w./-]+)`")
PACKED = "grounding_dino/configs", "grounding_dino/example_pictures"  # folders that only the wheel has
KEY = re.compile(r"\b[A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)+\b")
CONFIG_KEYS = set(config_keys(get_cfg()))
SECTIONS = {key.rsplit(".", count)[0] for key in CONFIG_KEYS for count in range(1, key.count(".") + 1)}


def slug(heading):
    """The anchor that a heading gets on code hosting pages."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_documents_are_found():
    names = {"README.md", "INSTALL.md", "GETTING_STARTED.md", "CONTRIBUTING.md", "MODEL_ZOO.md", "datasets/README.md"}
    assert names <= TEXTS.keys()
    assert {"docs/extending.md", "docs/migration.md", "docs/troubleshooting.md"} <= TEXTS.keys()
    shown = {command.script for command in SCRIPTS}
    tools = {str(file.relative_to(ROOT)) for file in [*ROOT.glob("tools/*.py"), ROOT / "train_net.py"]}
    assert tools <= shown, "scripts that no document shows"


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
        assert (ROOT / path).exists() or path.startswith(PACKED), f"{name} names {path}"


@pytest.mark.parametrize("name", TEXTS)
def test_tables_have_equal_rows(name):
    rows = re.findall(r"(?:^\|.*\n)+", FENCE.sub("", TEXTS[name]), re.MULTILINE)
    for table in rows:
        counts = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(counts) == 1, f"{name}: {table.splitlines()[0]}"


@pytest.mark.parametrize("name", TEXTS)
def test_configuration_keys_exist(name):
    words = " ".join(
        [*IN_BACKTICKS.findall(FENCE.sub("", TEXTS[name])), *(command.text for command in commands_of(name))]
    )
    keys = set(KEY.findall(words))
    unknown = {key for key in keys - CONFIG_KEYS - SECTIONS if key.split(".")[0] in get_cfg()}
    assert not unknown, f"{name} names configuration keys that do not exist"


def test_every_command_is_run_or_parsed_or_has_a_reason():
    for command in COMMANDS:
        command.why_not_run()


@pytest.mark.parametrize("command", SCRIPTS, ids=[f"{command.document}-{i}" for i, command in enumerate(SCRIPTS)])
def test_commands_parse(command):
    script, arguments = command.script, command.arguments
    if script == "tools/slurm_train.py" and "--" in arguments:
        own = arguments.index("--")
        parse(script, arguments[:own])
        script, arguments = "train_net.py", arguments[own + 1 :]
    if command.is_mention:
        return
    options = parse(script, arguments)
    if not hasattr(options, "opts"):
        return
    named = getattr(options, "config_file", None) or "shapes_tiny"  # benchmark.py takes several
    for configuration in [named] if isinstance(named, str) else named:
        if configuration in list_configs() or (Path(configuration).suffix and not configuration.startswith("output/")):
            load_cfg(get_config_file(configuration), options.opts or [])
    if script == "train_net.py":
        assert all("--" not in word for word in options.opts or [])


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize(
    "arguments", [command.arguments for command in SCRIPTS if "SOLVER.FREEZE" in command.arguments]
)
def test_patterns_of_frozen_parameters_find_some(arguments):
    options = train.build_parser().parse_args(arguments)
    cfg = load_cfg(get_config_file(options.config_file), options.opts)
    model = {"GLIP": GLIP, "GeneralizedDINO": GeneralizedDINO}[cfg.MODEL.META_ARCHITECTURE](cfg)
    assert 0 < len(freeze_parameters(cfg, model)) < len(list(model.parameters()))


@pytest.mark.parametrize("script", sorted({command.script for command in SCRIPTS} - {ENTRY_POINT}))
def test_scripts_explain_themselves(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.syspath_prepend(str((ROOT / script).parent))  # as Python does for a script
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert not end.value.code
    assert "usage" in capsys.readouterr().out


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {command.words[1] for command in COMMANDS if command.words[0] == "make" and len(command.words) > 1} | {
        target for text in TEXTS.values() for target in re.findall(r"`make ([a-z-]+)", text)
    }
    assert {"demo", "test", "test-slow", "doctor", "docs", "docs-check"} <= named | targets
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


def test_messages_that_are_explained_exist():
    own = TEXTS["docs/troubleshooting.md"].partition("## Kernels")[2]
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "grounding_dino").rglob("*.py"))
    messages = re.findall(r"^\| `([^`]+)` +\|", own, re.MULTILINE)
    assert len(messages) > 15
    assert not [message for message in messages if message not in source]


@pytest.mark.parametrize("name", TEXTS)
def test_products_are_spelt_one_way(name):
    prose = IN_BACKTICKS.sub("", FENCE.sub("", TEXTS[name]))
    prose = re.sub(r"\]\([^)]*\)|https?://\S+", "", prose)
    wrong = "Pytorch|Hugging[fF]ace|MaskDINO|GroundingDINO|Grounding Dino|Detectron 2|MMDetection|Github|Tensorboard"
    wrong += "|Onnx|onnxruntime|OpenVino|Numpy|Opencv|MM Grounding"
    assert not re.findall(rf"\b(?:{wrong})\b", prose)


def test_extras_are_listed():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.partition("[project.optional-dependencies]")[2].partition("\n[project.")[0]
    table = TEXTS["INSTALL.md"].partition("| extra ")[2].partition("\n\n")[0]
    assert set(re.findall(r"^(\w+) = \[", section, re.MULTILINE)) == set(
        re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    )
