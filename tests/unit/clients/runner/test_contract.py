"""The runner speaks the server's contract, on every Python that it promises, without generated stubs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tightfit_runner
from tightfit.v1 import hardware_pb2, runner_pb2
from tightfit_runner import contract
from tightfit_service.application.runners import sessions as runner_sessions

MODULES = sorted(Path(tightfit_runner.__file__).parent.glob("*.py"))


def test_messages_are_those_of_the_server() -> None:
    sent = contract.ConnectRunnerRequest()
    sent.measurement.order_id = "an order"
    sent.measurement.measured_latency_ms_p50 = 1.5
    sent.measurement.energy.source = "rapl:package-0"

    received = runner_pb2.ConnectRunnerRequest.FromString(sent.SerializeToString())

    assert received.measurement.measured_latency_ms_p50 == 1.5
    assert received.measurement.energy.source == "rapl:package-0"
    assert contract.FORMATS == {
        "tflite": hardware_pb2.MODEL_FORMAT_TFLITE,
        "onnx": hardware_pb2.MODEL_FORMAT_ONNX,
    }
    assert contract.PROTOCOL_VERSION == runner_sessions.PROTOCOL_VERSION


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_modules_are_written_in_the_oldest_python_that_is_promised(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    assert ast.get_docstring(tree)
    # annotations such as `int | None` are only read by newer Pythons
    has_code = any(not isinstance(node, ast.Expr) for node in tree.body)
    is_lazy = "from __future__ import annotations" in path.read_text()
    assert is_lazy or path.name in {"__init__.py", "__main__.py"} or not has_code
