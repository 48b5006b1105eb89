"""The architecture of a graph as lines of text that two models can be compared by."""

from __future__ import annotations

from tightfit_service.graph.model_file import load_model


def architecture(graph: bytes) -> tuple[str, ...]:
    """Return one line per node in graph order: its name, its operator, the shapes of its constants.

    Graphs with equal lines take the same recipe: passes address nodes by name and channels by index.
    Values of constants do not count, so newly trained weights have the same architecture.

    Raises:
        InvalidModelError: Not a working graph.
    """
    model = load_model(graph)
    shapes = {item.name: "x".join(map(str, item.dims)) or "1" for item in model.graph.initializer}
    return tuple(
        " ".join(
            [node.name, node.op_type, *(shapes[name] for name in node.input if name in shapes)]
        )
        for node in model.graph.node
    )
