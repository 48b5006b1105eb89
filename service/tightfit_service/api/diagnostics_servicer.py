"""DiagnosticsService over the use case `Diagnosis`."""
# ruff: noqa: N802, D102, ARG002  (gRPC gives names and parameters, the protos document them)

from __future__ import annotations

from importlib import metadata
from typing import Any

from tightfit.contract import contract_digest
from tightfit.v1 import diagnostics_pb2, diagnostics_pb2_grpc
from tightfit_service.api.codec.times import timestamp_to_proto
from tightfit_service.application.operations.diagnosis import Diagnosis, Finding, Outcome

_OUTCOMES = {
    Outcome.OK: diagnostics_pb2.Check.OUTCOME_OK,
    Outcome.WARNING: diagnostics_pb2.Check.OUTCOME_WARNING,
    Outcome.FAILED: diagnostics_pb2.Check.OUTCOME_FAILED,
}


class DiagnosticsServicer(diagnostics_pb2_grpc.DiagnosticsServiceServicer):
    """Translates DiagnosticsService."""

    def __init__(self, *, diagnosis: Diagnosis) -> None:
        self._diagnosis = diagnosis

    async def Diagnose(
        self, request: diagnostics_pb2.DiagnoseRequest, context: Any
    ) -> diagnostics_pb2.DiagnoseResponse:
        now = self._diagnosis.now()
        findings = await self._diagnosis.run()
        return diagnostics_pb2.DiagnoseResponse(
            checks=[_check_to_proto(finding) for finding in findings],
            server_version=metadata.version("tightfit-service"),
            contract_digest=contract_digest(),
            server_time=timestamp_to_proto(now),
        )


def _check_to_proto(finding: Finding) -> diagnostics_pb2.Check:
    return diagnostics_pb2.Check(
        subject=finding.subject,
        outcome=_OUTCOMES[finding.outcome],
        message=finding.message,
        remedy=finding.remedy,
    )
