"""Reading the equation of an Einsum node."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from tightfit_service.graph.structure import attribute


def einsum_terms(node: NodeProto, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """Return one letter per axis for each operand and for the result.

    None where the equation has an ellipsis, repeats a letter within an operand (a diagonal), or
    does not fit the operands' ranks.
    """
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    if "." in equation:
        return None
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = "".join(terms)
        right = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    fits = len(terms) == len(ranks) and all(
        len(term) == rank and len(set(term)) == rank
        for term, rank in zip(terms, ranks, strict=False)
    )
    known = set(right) <= set("".join(terms)) and len(set(right)) == len(right)
    return (terms, right) if fits and known else None
