"""Commands, options, settings, extras and files that the documentation names exist, with the defaults it states."""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from documentation import PAGES, ROOT, fenced, page_id, shell_commands, spans, tables
from tightfit.cli.app import app
from tightfit.cli.limits import Limits
from tightfit.dataset_file import read_dataset_file
from tightfit.target_file import read_target_file
from tightfit.words import (
    FORMATS,
    IMPORTANCES,
    QUANTITIES,
    TECHNIQUES,
    VERIFICATIONS,
    check_word,
)
from tightfit_runner.cli import _parser as runner_parser
from tightfit_service.command_line import make_parser as service_parser
from tightfit_service.settings import ENVIRONMENT_PREFIX, Settings

PACKAGE = ROOT / "service" / "tightfit_service"
OF_TESTS = {"TIGHTFIT_CI_IMAGE"}
"""Variables of `.ci/run`, which are no settings."""
WORDS = {
    "objective": QUANTITIES,
    "format_": FORMATS,
    "importance": IMPORTANCES,
    "technique": TECHNIQUES,
    "verify": VERIFICATIONS,
}
LIMITS = tuple(field.name for field in fields(Limits))


ROOT_COMMAND: Any = typer.main.get_command(app)


def parse(words: Sequence[str]) -> None:
    """Parse the arguments of `tightfit` as the command line does; raises where it refuses them."""
    command = ROOT_COMMAND
    context: Any = None
    name, rest = "tightfit", list(words)
    try:
        while True:
            context = command.make_context(name, rest, parent=context)
            if not hasattr(command, "commands"):
                break
            rest = [*context._protected_args, *context.args]
            name, command, rest = command.resolve_command(context, rest)
    except typer.Exit:
        # --help, --version
        return
    if name == "serve":
        service_parser().parse_args(["serve", *context.args])
    given = context.params
    if "max_latency" in given:
        Limits(**{limit: given[limit] for limit in LIMITS}).budget()
    for key, offered in WORDS.items():
        value = given.get(key)
        for word in value if isinstance(value, (list, tuple)) else [value] if value else []:
            check_word(word, offered, field=key)


def tell(words: Sequence[str]) -> None:
    """Parse a command that the documentation shows, if it is one of ours."""
    if "--" in words:
        # kubectl exec POD -- COMMAND
        tell(words[words.index("--") + 1 :])
        return
    name, rest = words[0], list(words[1:])
    if name == "tightfit":
        parse(rest)
    elif name == "tightfit-runner":
        runner_parser().parse_args(rest)
    elif name == "tightfit-service":
        service_parser().parse_args(rest)
    elif name.startswith("python") and rest[:2] == ["-m", "tightfit_service"]:
        service_parser().parse_args(rest[2:])
    elif name in ("python", "sh"):
        assert (ROOT / rest[0]).is_file(), rest[0]
    elif name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets)
    elif name == "helm":
        values = yaml.safe_load((ROOT / "helm" / "tightfit" / "values.yaml").read_text())
        for option, value in itertools.pairwise(rest):
            if option == "--set":
                look_up(values, value.partition("=")[0])


def look_up(values: Any, path: str) -> None:
    for part in path.split("."):
        assert part in values, path
        values = values[part]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_in_shell_blocks_parse(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("TIGHTFIT_SERVER", "TIGHTFIT_DATA_DIR", "TIGHTFIT_TLS"):
        monkeypatch.delenv(name, raising=False)
    for words in shell_commands(page.read_text()):
        try:
            tell(words)
        except SystemExit:
            pytest.fail(f"{shlex.join(words)}: {capsys.readouterr().err}")


def test_a_command_that_is_wrong_is_found() -> None:
    text = "```sh\nA=b tightfit jobs list \\\n    --stat queued > file && make demo\n```\n"
    first, second = shell_commands(text)
    assert first == ["tightfit", "jobs", "list", "--stat", "queued"]
    assert second == ["make", "demo"]
    with pytest.raises(typer.BadParameter.__mro__[1], match="--stat"):
        tell(first)
    with pytest.raises(AssertionError):
        tell(["make", "demos"])
    with pytest.raises(SystemExit):
        tell(["tightfit-service", "serv"])


def _parameters(command: Any) -> Iterator[Any]:
    yield from command.params
    for inner in getattr(command, "commands", {}).values():
        yield from _parameters(inner)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    root = ROOT_COMMAND
    for span in spans(page.read_text()):
        words = span.split()
        if words[0] == "tightfit-service" and len(words) > 1:
            service_parser().parse_args(words[1:])
        if words[0] != "tightfit" or len(words) == 1:
            continue
        command = root
        following = iter(words[1:])
        for word in following:
            inner = getattr(command, "commands", {})
            if word.startswith("-"):
                name, _, value = word.partition("=")
                offered = {name: p for p in (*root.params, *command.params) for name in p.opts}
                assert name in {*offered, "--help", "-h"}, f"`{span}`"
                if name in offered and not value and not offered[name].is_flag:
                    next(following, None)
            elif inner and not word.isupper():
                assert word in inner, f"`{span}`"
                command = inner[word]


def test_every_command_and_every_option_of_a_job_is_shown_somewhere() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    root = ROOT_COMMAND
    for name, command in root.commands.items():
        row = next((row for row in rows if f"`tightfit {name}" in row), None)
        assert row is not None, f"README lists no `tightfit {name}`"
        for inner in getattr(command, "commands", {}):
            shown = f"{name} {inner}" in text or f"`{inner}`" in row
            assert shown, f"nothing shows `tightfit {name} {inner}`"
    for parameter in root.commands["compress"].params:
        if parameter.param_type_name == "option" and not parameter.opts[0].startswith("--json"):
            assert any(option in text for option in parameter.opts), parameter.opts


@functools.cache
def variables() -> set[str]:
    settings = {f"{ENVIRONMENT_PREFIX}{field.name.upper()}" for field in fields(Settings)}
    of_client = {
        str(parameter.envvar) for parameter in _parameters(ROOT_COMMAND) if parameter.envvar
    }
    return settings | of_client | OF_TESTS


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_variables_are_settings(page: Path) -> None:
    known = variables()
    for name, star in re.findall(r"\b(TIGHTFIT_[A-Z0-9_]*)(\*?)", page.read_text()):
        if star or name == ENVIRONMENT_PREFIX:
            assert any(variable.startswith(name) for variable in known), name
        else:
            assert name in known, name


def stated(text: str) -> Any:
    """Return the value that a cell of defaults states."""
    text = text.strip("` ")
    if (size := re.fullmatch(r"(\d+) (GiB|MiB)", text)) is not None:
        return int(size[1]) << {"GiB": 30, "MiB": 20}[size[2]]
    if text in ("", "none"):
        return ""
    if text in ("true", "false"):
        return text == "true"
    return float(text) if re.fullmatch(r"[\d.]+", text) else text


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_tables_of_settings_name_settings_with_their_defaults(page: Path) -> None:
    defaults = {field.name: field.default for field in fields(Settings)}
    for heading, rows in tables(page.read_text()):
        if heading[0] != "setting":
            continue
        for row in rows:
            names = re.findall(r"`(\w+)`", row[0])
            assert names, row
            for name in names:
                key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
                assert key in defaults, f"{page.name}: {name}"
                if "default" in heading:
                    assert stated(row[heading.index("default")]) == defaults[key], key


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_in_the_text_exist(page: Path) -> None:
    bases = (ROOT, PACKAGE, ROOT / "clients" / "python", page.parent)
    for span in spans(page.read_text()):
        if not re.fullmatch(r"[\w.*-]+(/[\w.*-]+)*/?", span) or "/" not in span:
            continue
        # words in capitals stand for what a reader chooses
        parts = [re.sub(r"^[A-Z]+(?=\.|$)", "*", part) for part in span.strip("/").split("/")]
        homes = [base for base in bases if (base / parts[0]).is_dir()]
        if homes:
            assert any(list(base.glob("/".join(parts))) for base in homes), f"{page.name}: {span}"


def test_extras_exist() -> None:
    extras = {}
    for folder in (ROOT, ROOT / "clients" / "python", ROOT / "clients" / "runner"):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        extras[project["name"]] = set(project["optional-dependencies"])
    for page in PAGES:
        for name, chosen in re.findall(r"(tightfit(?:-\w+)?)\[([\w,-]+)\]", page.read_text()):
            assert set(chosen.split(",")) <= extras[name], f"{page.name}: {name}[{chosen}]"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_in_the_pages_compiles_and_imports_what_exists(page: Path) -> None:
    for block in fenced(page.read_text(), "python"):
        tree = ast.parse(block, filename=str(page))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{page.name}: {name.name}"


def test_the_dataset_of_the_readme_is_one_for_the_example(tmp_path: Path) -> None:
    (block,) = fenced((ROOT / "README.md").read_text(), "yaml")
    (tmp_path / "dataset.yaml").write_text(block)
    shutil.copy(ROOT / "examples" / "digits" / "digits.npz", tmp_path)
    manifest = read_dataset_file(tmp_path / "dataset.yaml").manifest
    of_example = read_dataset_file(ROOT / "examples" / "digits" / "dataset.yaml").manifest
    assert {key: manifest[key] for key in of_example} == of_example
    assert len(manifest["class_names"]) == 10


def test_the_target_of_the_page_on_targets_can_be_read(tmp_path: Path) -> None:
    (block,) = fenced((ROOT / "docs" / "targets.md").read_text(), "yaml")
    (tmp_path / "our-board.yaml").write_text(block)
    spec = read_target_file(tmp_path / "our-board.yaml")
    assert (spec.name, spec.core, spec.accelerator.kind) == (
        "our-board",
        "cortex-m55",
        "ethos-u55",
    )


def _helps(command: Any) -> Iterator[str]:
    yield command.help or ""
    for inner in getattr(command, "commands", {}).values():
        yield from _helps(inner)


def test_examples_in_help_texts_parse() -> None:
    examples = [
        example
        for text in _helps(ROOT_COMMAND)
        for example in re.findall(r"Example: `([^`]+)`", text)
    ]
    assert len(examples) >= 3
    for example in examples:
        tell(shlex.split(example))
