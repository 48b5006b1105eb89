"""Values, names and expressions of a torch.export program, held against narrow grammars.

torch's deserializer hands expressions to `sympify`, which evaluates them, and writes names into Python
code. What comes out of here holds nothing but plain names, numbers and sums of products of sizes.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Mapping
from typing import Any

from tightfit_service.adapters.formats.pt2_archive import malformed
from tightfit_service.graph.model_file import invalid, shown

_IDENTIFIER = re.compile(r"[A-Za-z_]\w{0,250}", re.ASCII)
_FOREIGN_PARTS = {
    "as_graph": "a nested graph (control flow, or a block under no_grad or autocast)",
    "as_custom_obj": "a custom object",
    "as_operator": "an operator as an argument",
}
_SYMBOL = re.compile(r"[a-z]{1,2}\d{1,9}", re.ASCII)
_EXPRESSION_CALLS = {"Symbol", "Integer", "Add", "Mul", "Mod", "FloorDiv", "Max", "Min"}
_LONGEST_EXPRESSION = 2_000
_LARGEST_INTEGER = 1 << 62
_DEEPEST = 40


def clean_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of descriptions by name, names and descriptions checked.

    Raises:
        InvalidModelError: As `clean_value`.
    """
    return {identifier(name): clean_value(value) for name, value in values.items()}


def clean_value(value: Any, depth: int = 0) -> Any:
    """Return a copy of an argument or of a tensor's description, every text in it checked.

    Raises:
        InvalidModelError: A nested graph, an object, or a name, expression or number that torch
            does not write.
    """
    if depth > _DEEPEST:
        raise malformed("nesting of models/model.json")
    if isinstance(value, dict):
        if set(value) == {"type", "index"}:
            return {"type": "cpu", "index": None}
        for key in value:
            if key in _FOREIGN_PARTS:
                raise invalid(
                    f"the program has {_FOREIGN_PARTS[key]}, which is not taken in",
                    remedy="export the network without it",
                )
        return {
            identifier(key): _expression(item)
            if key == "expr_str"
            else identifier(item)
            if key == "name"
            else clean_value(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [clean_value(item, depth + 1) for item in value]
    if isinstance(value, str) and len(value) > 200:
        raise malformed("a text in models/model.json")
    if isinstance(value, int) and abs(value) > 2 * _LARGEST_INTEGER:
        raise malformed("a number in models/model.json")
    return value


def _expression(text: Any) -> str:
    """Return the `srepr` of a sum or product of symbols, which torch hands to `sympify`."""
    if not isinstance(text, str) or len(text) > _LONGEST_EXPRESSION:
        raise malformed("an expression in models/model.json")
    try:
        body = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise malformed("an expression in models/model.json") from error
    if not _is_arithmetic(body):
        raise invalid(
            f"the shape {shown(text)} is no plain arithmetic over sizes",
            remedy="export the network with a free (dynamic) batch and fixed sizes behind it",
        )
    return text


def _is_arithmetic(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int and abs(node.value) < _LARGEST_INTEGER
    if isinstance(node, ast.Name):
        return bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and _is_arithmetic(node.operand)
    if isinstance(node, ast.BinOp):
        known = isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.FloorDiv)
        return known and _is_arithmetic(node.left) and _is_arithmetic(node.right)
    return isinstance(node, ast.Call) and _is_arithmetic_call(node)


def _is_arithmetic_call(node: ast.Call) -> bool:
    if not isinstance(node.func, ast.Name) or node.func.id not in _EXPRESSION_CALLS:
        return False
    if node.func.id != "Symbol":
        return not node.keywords and all(_is_arithmetic(item) for item in node.args)
    is_named = (
        len(node.args) == 1
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
        and bool(_SYMBOL.fullmatch(node.args[0].value))
    )
    return is_named and all(
        item.arg in {"positive", "integer", "nonnegative"}
        and isinstance(item.value, ast.Constant)
        and type(item.value.value) is bool
        for item in node.keywords
    )


def identifier(name: Any) -> str:
    """Return a name that may stand in Python code.

    Raises:
        InvalidModelError: It may not.
    """
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name) or keyword.iskeyword(name):
        raise invalid(
            f"{shown(str(name))} is no name that torch gives",
            remedy="the file is damaged: export or upload it again",
        )
    return name


def symbol(name: str) -> str:
    """Return the name of a free size, or that of an unused one for a whole expression.

    Ranges of expressions follow from those of the sizes in them.
    """
    return name if _SYMBOL.fullmatch(name) else "unused0"


def bound(value: Any) -> int | None:
    """Return the end of a size's range; None for an open one. Raises TypeError for anything else."""
    return None if value is None else integer(value)


def integer(value: Any) -> int:
    """Return a number that fits into 64 bits. Raises TypeError for anything else."""
    if not isinstance(value, int) or abs(value) > 2 * _LARGEST_INTEGER:
        raise TypeError(value)
    return int(value)
