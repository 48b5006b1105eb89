"""Send hostile inputs to a real server, and see that each is refused or harmless and the server unmoved.

    PYTHONPATH=tests python tests/faults/hostile_inputs.py [--count 2000] [--seed 0] [--json FILE]

Every input is drawn from its number, so that a failure is repeated with `--only NUMBER`. An input passes
when it is answered OK (some mutations mean nothing) or with an error that is the caller's: never INTERNAL,
never a dead server, never a file outside the server's folder.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.json_format import ParseDict
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # ships no types
from grpc_status import rpc_status

from fakes.damaged_models import damaged, damaged_bytes
from fakes.hostile_archives import ESCAPE, hostile_dataset, hostile_zip
from fakes.hostile_messages import HOSTILE_TEXTS, random_message
from fakes.networks import NETWORKS
from faults.deployment import merge
from running_server import RunningServer
from tightfit.v1 import (
    compression_pb2,
    hardware_pb2,
    job_pb2,
    model_pb2,
    recipe_pb2,
    transfer_pb2,
)
from tightfit_service.api.server import SERVICES
from tightfit_service.graph.architecture import architecture

PARENT = "projects/default"
TARGET = "hardwareTargets/nucleo-h743zi2"
CALL_SECONDS = 300.0
STREAM_SECONDS = 3.0
CALLERS_FAULT = frozenset(
    {
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "FAILED_PRECONDITION",
        "UNIMPLEMENTED",
        "RESOURCE_EXHAUSTED",
        "DATA_LOSS",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
    }
)
STREAMS = ("WatchJob", "ConnectRunner")
"""Methods whose streams stay open when they are accepted: then the caller's patience ends them."""
SERVER_BYTES = 512 << 20
"""Memory that the server process may come to; it is 180 MB or so."""
ALL_BYTES = 4 << 30
"""Memory that the server may come to with its workers; each is killed at its own limit."""

Answer = tuple[str, str, str, str]
"""Code, reason, field and remedy."""


@dataclass
class Findings:
    """What came of a run."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    server_bytes: int = 0
    all_bytes: int = 0
    seconds: float = 0.0


class Attacker:
    """A channel to a server, and everything that is sent over it."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]
        )
        self.names = [PARENT, TARGET, "projects/default/jobs/none"]
        self.model = ""
        model = NETWORKS["mlp"](0).SerializeToString()
        answer = self.upload("Model", model)
        assert answer[0] == "OK", answer
        digest = hashlib.sha256(model).hexdigest()
        listed = self.call("ModelService", "ListModels", model_pb2.ListModelsRequest(parent=PARENT))
        self.model = next(item.name for item in listed.models if item.digest == digest)
        self.names.append(self.model)
        self.lines = architecture(_graph_of(model))

    def call(
        self, service: str, method: str, request: Any, *, seconds: float = CALL_SECONDS
    ) -> Any:
        found = _method(f"tightfit.v1.{service}", method)
        return self._stub(found)(request.SerializeToString(), timeout=seconds)

    def send(self, method: MethodDescriptor, messages: Sequence[bytes]) -> Answer:
        """Send messages, read all answers, and return how it ended."""
        seconds = STREAM_SECONDS if method.name in STREAMS else CALL_SECONDS
        stub = self._stub(method)
        try:
            call = stub(iter(messages) if method.client_streaming else messages[0], timeout=seconds)
            if method.server_streaming:
                for _ in call:
                    pass
            elif method.name in ("CreateJob", "ApplyRecipe") and call.name:
                cancel = compression_pb2.CancelJobRequest(name=call.name)
                self.call("CompressionService", "CancelJob", cancel)
        except grpc.RpcError as error:
            return _answer(error, is_stream=method.name in STREAMS)
        return ("OK", "", "", "")

    def upload(self, kind: str, data: bytes) -> Answer:
        """Upload bytes as a model or dataset, and return how it ended."""
        service = f"tightfit.v1.{kind}Service"
        start, send = (
            _method(service, f"Start{kind}Upload"),
            _method(service, f"Upload{kind}"),
        )
        opening = _class(start.input_type)(
            parent=PARENT, size_bytes=len(data), digest=hashlib.sha256(data).hexdigest()
        )
        try:
            opened = self._stub(start)(opening.SerializeToString(), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            return _answer(error, is_stream=False)
        make = _class(send.input_type)
        parts = [make(header=transfer_pb2.UploadHeader(upload=opened.name, offset=0))]
        parts += [make(data=data[at : at + (1 << 20)]) for at in range(0, len(data), 1 << 20)]
        return self.send(send, [part.SerializeToString() for part in parts])

    def _stub(self, method: MethodDescriptor) -> Any:
        make = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, False): self.channel.stream_unary,
            (True, True): self.channel.stream_stream,
        }[method.client_streaming, method.server_streaming]
        return make(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=None,
            response_deserializer=_class(method.output_type).FromString,
        )


def _graph_of(model: bytes) -> bytes:
    from tightfit_service.adapters.formats.onnx_import import OnnxImporter

    return OnnxImporter().import_model(model).graph


def _class(descriptor: Any) -> Any:
    return message_factory.GetMessageClass(descriptor)


def _method(service: str, name: str) -> MethodDescriptor:
    return Default().FindServiceByName(service).methods_by_name[name]


@cache
def _methods() -> tuple[MethodDescriptor, ...]:
    return tuple(
        method for name in SERVICES for method in Default().FindServiceByName(name).methods
    )


def _answer(error: Any, *, is_stream: bool) -> Answer:
    code = error.code().name
    if is_stream and code == "DEADLINE_EXCEEDED":
        return ("OK", "", "", "")
    status = rpc_status.from_call(error)
    reason = at = remedy = ""
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            reason, at = info.reason, info.metadata.get("field", "")
            remedy = info.metadata.get("remedy", "")
    return (code, reason, at, remedy)


def _message(to: Attacker, rng: random.Random) -> Answer:
    """A request of any method, filled with odd values, and now and then with damaged bytes."""
    method = rng.choice(_methods())
    request = random_message(method.input_type, rng, to.names)
    if method.name == "CreateJob":
        request.validate_only = True
    data = request.SerializeToString()
    if data and rng.random() < 0.3:
        data = damaged_bytes(data, rng)
    return to.send(method, [data] * (rng.randrange(1, 4) if method.client_streaming else 1))


def _name(to: Attacker, rng: random.Random) -> Answer:
    """A name that leads elsewhere, where a method takes one."""
    methods = [m for m in _methods() if {"name", "parent"} & set(m.input_type.fields_by_name)]
    method = rng.choice(methods)
    at = "name" if "name" in method.input_type.fields_by_name else "parent"
    text = rng.choice(HOSTILE_TEXTS)
    if rng.random() < 0.5:
        text = f"{PARENT}/{rng.choice(['models', 'jobs', 'uploads', 'artifacts'])}/{text}"
    return to.send(method, [_class(method.input_type)(**{at: text}).SerializeToString()])


def _onnx(to: Attacker, rng: random.Random) -> Answer:
    name = rng.choice(["mlp", "split_branches", "squeeze_excite", "depthwise"])
    return to.upload("Model", damaged(_network(name), rng.randrange(2**32)) or b"\0")


@cache
def _network(name: str) -> Any:
    return NETWORKS[name](0)


def _tflite(to: Attacker, rng: random.Random) -> Answer:
    raw = bytearray(_tflite_file(rng.choice(["attention", "lstm", "conv same", "pad"])))
    if rng.random() < 0.4:
        return to.upload("Model", damaged_bytes(bytes(raw), rng) or b"\0")
    for _ in range(rng.randrange(1, 4)):
        start = 4 * rng.randrange(len(raw) // 4)
        raw[start : start + 4] = rng.choice([0, 1, -1, 2**31 - 1, rng.randrange(2**31)]).to_bytes(
            4, "little", signed=True
        )
    return to.upload("Model", bytes(raw))


@cache
def _tflite_file(name: str) -> bytes:
    from fakes.tflite_operators import OPERATORS

    return OPERATORS[name]()


@cache
def _program() -> dict[str, bytes]:
    from fakes.exported_programs import exported, members

    return {f"net/{name}": content for name, content in members(exported("dense")).items()}


def _pt2(to: Attacker, rng: random.Random) -> Answer:
    files = dict(_program())
    if rng.random() < 0.4:
        name = rng.choice(sorted(files))
        files[name] = damaged_bytes(files[name] or b"\0", rng)
        from fakes.hostile_archives import plain_zip

        return to.upload("Model", plain_zip(files, compression=0))
    return to.upload("Model", hostile_zip(files, rng))


def _dataset(to: Attacker, rng: random.Random) -> Answer:
    return to.upload("Dataset", hostile_dataset(rng))


def _target(to: Attacker, rng: random.Random) -> Answer:
    """A description of a device with odd figures."""
    spec = hardware_pb2.HardwareSpec(name="device", core="cortex-m7", clock_mhz=280)
    odd = random_message(hardware_pb2.HardwareSpec.DESCRIPTOR, rng, to.names)
    for at, value in odd.ListFields():
        if rng.random() < 0.3 and not at.is_repeated and at.message_type is None:
            setattr(spec, at.name, value)
        elif rng.random() < 0.3:
            spec.ClearField(at.name)
            spec.MergeFrom(_only(odd, at.name))
    if rng.random() < 0.5:
        request: Any = hardware_pb2.CreateHardwareTargetRequest(
            parent=PARENT,
            hardware_target=hardware_pb2.HardwareTarget(spec=spec),
            validate_only=True,
        )
        return to.send(
            _method("tightfit.v1.HardwareService", "CreateHardwareTarget"),
            [request.SerializeToString()],
        )
    request = hardware_pb2.EstimateModelRequest(model=to.model, hardware_spec=spec)
    return to.send(
        _method("tightfit.v1.HardwareService", "EstimateModel"), [request.SerializeToString()]
    )


def _only(message: Any, name: str) -> Any:
    part = type(message)()
    part.MergeFrom(message)
    for at, _ in message.ListFields():
        if at.name != name:
            part.ClearField(at.name)
    return part


_PARAMETERS: tuple[Any, ...] = (
    {"keep": {"hidden": [0, 1, 2]}},
    {"keep": {"hidden": [-1, 10**9, 0.5, "x"]}},
    {"keep": {"../../x": [[]]}},
    {"keep": [1, 2]},
    {"keep": {"a": None}},
    {"nodes": {"hidden": {"rank": 0}}},
    {"nodes": {"hidden": {"rank": 1e308, "form": "spatial"}}},
    {"nodes": {"nowhere": {}}},
    {"number_format": "int8", "node_formats": {"x": "int3"}},
    {"number_format": "\u0000"},
    {"epochs": -1, "learning_rate": "nan"},
    {"size": [0, 0]},
    {"size": [10**12, 10**12]},
    {"blocks": ["a"] * 1_000},
    {},
)


def _recipe(to: Attacker, rng: random.Random) -> Answer:
    """A recipe that fits the model by its architecture, and nothing else by its steps."""
    passes = (
        *("structured_pruning", "low_rank", "precision", "resolution", "depth_pruning"),
        *("quantization", "recovery", "sparsity", "clustering", "equalization", "../x", ""),
    )
    steps = []
    for _ in range(rng.randrange(1, 4)):
        parameters = rng.choice(_PARAMETERS)
        step = recipe_pb2.PassStep(pass_name=rng.choice(passes))
        ParseDict(parameters, step.parameters)
        steps.append(step)
    recipe = recipe_pb2.Recipe(
        version=rng.choice([1, 1, 1, 0, 99]),
        source_digest="0" * 64,
        target="nucleo-h743zi2",
        output_format=hardware_pb2.MODEL_FORMAT_TFLITE,
        steps=steps,
        architecture=to.lines if rng.random() < 0.8 else [*to.lines, "more"],
    )
    request = compression_pb2.ApplyRecipeRequest(
        parent=PARENT,
        spec=job_pb2.CompressionSpec(model=to.model, hardware_target=TARGET),
        recipe=recipe,
    )
    return to.send(
        _method("tightfit.v1.CompressionService", "ApplyRecipe"), [request.SerializeToString()]
    )


_TABLE = "model,op,in_h,in_w,in_c,out_h,out_w,out_c,macs\nm,CONV_2D,8,8,3,8,8,4,6912\n"


def _table(to: Attacker, rng: random.Random) -> Answer:
    """A layer table with odd cells, columns and bytes."""
    cells = _TABLE.replace("\n", ",\n").split(",")
    for _ in range(rng.randrange(1, 4)):
        cells[rng.randrange(len(cells))] = rng.choice(
            [
                *("", "-1", "nan", "1e999", "9" * 500, '"', '"\n', "\x00", "x" * 200_000),
                *("=cmd|' /C calc'!A0", "\r", "0", "1e-320", "2147483648"),
            ]
        )
    text = ",".join(cells) * rng.choice([1, 1, 300])
    request = hardware_pb2.EstimateModelRequest(layer_table=text, hardware_target=TARGET)
    return to.send(
        _method("tightfit.v1.HardwareService", "EstimateModel"), [request.SerializeToString()]
    )


KINDS: dict[str, Callable[[Attacker, random.Random], Answer]] = {
    "message": _message,
    "name": _name,
    "onnx": _onnx,
    "tflite": _tflite,
    "pt2": _pt2,
    "dataset": _dataset,
    "target": _target,
    "recipe": _recipe,
    "layer table": _table,
}


def run(folder: Path, *, count: int, seed: int, only: int | None = None) -> Findings:
    """Start a server below the folder, send inputs to it, and return what came of them."""
    findings = Findings(outcomes={kind: Counter() for kind in KINDS})
    server = RunningServer(folder / "data").start()
    watch = _MemoryWatch(server.pid)
    began = time.monotonic()
    try:
        attacker = Attacker(server.address)
        kinds = list(KINDS)
        for number in range(count) if only is None else [only]:
            kind = kinds[number % len(kinds)]
            rng = random.Random(f"{seed} {number}")
            answer = KINDS[kind](attacker, rng)
            findings.outcomes[kind][answer[0]] += 1
            wrong = _wrong(answer)
            if wrong:
                findings.failures.append(f"input {number} ({kind}): {wrong}: {answer}")
                print(findings.failures[-1], flush=True)
            if number % 100 == 99:
                print(f"{number + 1} inputs, {time.monotonic() - began:.0f} s", flush=True)
            if not server.is_running:
                findings.failures.append(f"input {number} ({kind}) ended the server")
                break
        if server.is_running:
            answer = attacker.upload("Model", NETWORKS["depthwise"](7).SerializeToString())
            if answer[0] != "OK":
                findings.failures.append(f"a good model is refused afterwards: {answer}")
    finally:
        findings.seconds = time.monotonic() - began
        findings.server_bytes, findings.all_bytes = watch.stop()
        if server.is_running:
            server.stop()
    findings.failures.extend(f"a file got out: {path}" for path in _escaped(folder))
    if findings.server_bytes > SERVER_BYTES or findings.all_bytes > ALL_BYTES:
        findings.failures.append(
            f"memory: the server came to {findings.server_bytes >> 20} MiB, with its workers to "
            f"{findings.all_bytes >> 20} MiB"
        )
    return findings


def _wrong(answer: Answer) -> str:
    code, reason, at, remedy = answer
    if code == "OK":
        return ""
    if code not in CALLERS_FAULT:
        return "not the caller's fault"
    if not reason and code not in ("UNIMPLEMENTED", "RESOURCE_EXHAUSTED"):
        return "no reason"
    if code == "INVALID_ARGUMENT" and not (at and remedy):
        return "no field or no remedy"
    return ""


def _escaped(folder: Path) -> Iterator[Path]:
    places = (Path("/tmp"), Path("/"), Path.cwd(), *folder.parents)
    for place in dict.fromkeys(places):
        yield from (path for path in place.iterdir() if ESCAPE in path.name)
    yield from (path for path in folder.rglob(f"*{ESCAPE}*"))


class _MemoryWatch:
    """Reads the resident memory of a process and of its children five times a second."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._most = (0, 0)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> tuple[int, int]:
        self._end.set()
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            own = _resident(self._pid)
            everyone = own + sum(_resident(pid) for pid in _descendants(self._pid))
            self._most = (max(self._most[0], own), max(self._most[1], everyone))


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def main() -> int:
    """Run and print what came of it."""
    parser = argparse.ArgumentParser(description="Send hostile inputs to a server.")
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of one input, to repeat it")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tightfit-hostile-") as folder:
        found = run(Path(folder), count=arguments.count, seed=arguments.seed, only=arguments.only)
    for kind, codes in found.outcomes.items():
        print(f"{kind:12} {dict(codes.most_common())}")
    print(
        f"{found.seconds:.0f} s; memory: server {found.server_bytes >> 20} MiB, "
        f"with workers {found.all_bytes >> 20} MiB"
    )
    for failure in found.failures:
        print(failure)
    if arguments.json:
        merge(
            arguments.json,
            "hostile inputs",
            {
                "seed": arguments.seed,
                "seconds": round(found.seconds, 1),
                "answers": {kind: dict(codes) for kind, codes in found.outcomes.items()},
                "server_bytes": found.server_bytes,
                "all_bytes": found.all_bytes,
                "problems": found.failures,
            },
        )
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
