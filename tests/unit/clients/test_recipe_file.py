"""`recipe.json` read, refused and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tightfit.cli.recipe import app
from tightfit.errors import InvalidInputError
from tightfit.recipe_file import differences, read_recipe_file, recipe_of
from tightfit.result_file import recipe_content

RECIPE: dict[str, Any] = {
    "version": 1,
    "source_digest": "ab" * 32,
    "seed": 3,
    "target": "board",
    "output_format": "tflite",
    "steps": [
        {"pass_name": "structured_pruning", "parameters": {"keep": {"conv1": list(range(12))}}},
        {"pass_name": "recovery", "parameters": {"epochs": 2.5, "max_seconds": None}},
    ],
    "tool_versions": {"torch": "2.13"},
    "architecture": ["conv1 Conv 16x3x3x3"],
}


def written(folder: Path, content: Any) -> Path:
    path = folder / "recipe.json"
    path.write_text(json.dumps(content))
    return path


def test_a_recipe_survives_the_wire_and_the_file(tmp_path: Path) -> None:
    recipe = read_recipe_file(written(tmp_path, RECIPE))
    assert recipe_content(recipe) == RECIPE


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": "none"}, "steps"),
        ({"steps": [{"parameters": {}}]}, "steps[0].pass_name"),
        ({"steps": [{"pass_name": "x", "parameters": [1]}]}, "steps[0].parameters"),
        ({"magic": 1}, "magic"),
        ({"output_format": "gif"}, "output_format"),
        ({"version": True}, "version"),
        ({"version": 1 << 31}, "version"),
        ({"seed": -(1 << 63) - 1}, "seed"),
        ({"steps": ["prune"]}, "steps[0].pass_name"),
        ({"steps": [{"pass_name": "x", "with": {}}]}, "steps[0].with"),
        ({"architecture": ["conv1 Conv", 3]}, "architecture[1]"),
        ({"tool_versions": {"torch": 2.13}}, "tool_versions.torch"),
    ],
)
def test_what_is_no_recipe_is_refused_by_its_key(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_recipe_file(written(tmp_path, {**RECIPE, **change}))
    assert caught.value.field == field
    assert caught.value.remedy


def test_files_that_hold_no_recipe_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot read"):
        read_recipe_file(tmp_path / "nothing.json")
    with pytest.raises(InvalidInputError, match="not a recipe"):
        read_recipe_file(written(tmp_path, [1]))
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(InvalidInputError, match="not JSON"):
        read_recipe_file(tmp_path / "text.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InvalidInputError, match="not JSON"):
        read_recipe_file(tmp_path / "deep.json")
    with pytest.raises(InvalidInputError, match="no version"):
        read_recipe_file(written(tmp_path, {k: v for k, v in RECIPE.items() if k != "version"}))


@pytest.mark.parametrize("command", ["show", "diff"])
def test_commands_answer_what_is_no_recipe_and_show_odd_parameters(
    tmp_path: Path, command: str
) -> None:
    odd = [{"pass_name": "structured_pruning", "parameters": {"keep": [1], "nodes": 3}}]
    path = written(tmp_path, {**RECIPE, "steps": odd})
    files = [str(path)] * (1 if command == "show" else 2)
    result = CliRunner().invoke(app, [command, *files])
    assert result.exit_code == 0, result.output
    written(tmp_path, {**RECIPE, "steps": [7]})
    assert isinstance(CliRunner().invoke(app, [command, *files]).exception, InvalidInputError)


def test_differences_name_the_step_and_the_units() -> None:
    keep = {"conv1": [*range(11), 15]}
    other = {
        **RECIPE,
        "seed": 4,
        "steps": [
            {"pass_name": "structured_pruning", "parameters": {"keep": keep}},
            {"pass_name": "low_rank", "parameters": {"nodes": {"fc": {"rank": 8}}}},
        ],
    }
    found = {path: (one, two) for path, one, two in differences(RECIPE, other)}
    assert found["seed"] == ("3", "4")
    assert found["steps.structured_pruning.keep.conv1"] == (
        "12 entries, only here: 11",
        "12 entries, only here: 15",
    )
    assert found["steps.low_rank"][0] == ""
    assert "steps.recovery" in found
    assert differences(RECIPE, json.loads(json.dumps(RECIPE))) == []
    assert differences(RECIPE, {**RECIPE, "steps": RECIPE["steps"][::-1]}) == [
        ("order of steps", "structured_pruning, recovery", "recovery, structured_pruning")
    ]
    assert recipe_of(RECIPE) == recipe_of(json.loads(json.dumps(RECIPE)))


def test_a_recipe_is_read_out_of_the_model_that_it_led_to(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for facts, said in (
        ({"tightfit.recipe": json.dumps(RECIPE)}, ""),
        ({"tightfit.recipe_digest": "ab12"}, "too small to hold its recipe, whose sha-256 is ab12"),
        ({"producer": "other"}, "holds no recipe"),
    ):
        path.write_bytes(
            b"".join(
                b"\x72" + _delimited(b"\x0a" + _delimited(key) + b"\x12" + _delimited(value))
                for key, value in ((k.encode(), v.encode()) for k, v in facts.items())
            )
        )
        if said:
            with pytest.raises(InvalidInputError, match=said):
                read_recipe_file(path)
        else:
            assert read_recipe_file(path) == recipe_of(RECIPE)


def _delimited(data: bytes) -> bytes:
    size, prefix = len(data), bytearray()
    while size >= 128:
        prefix.append(size & 127 | 128)
        size >>= 7
    return bytes([*prefix, size]) + data
