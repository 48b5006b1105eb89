"""What is known of an imported model apart from its graph, as units of work and the server pass it on."""

from __future__ import annotations

from dataclasses import dataclass

from tightfit_service.application.ports import ImportedModel, TensorSignature
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.network import NetworkProfile, PruningSpace


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of an imported model, apart from its graph."""

    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    opset: int
    node_count: int
    parameter_count: int
    macs: int
    is_quantized: bool
    warnings: tuple[str, ...]
    profile: NetworkProfile
    space: PruningSpace
    source_format: ModelFormat = ModelFormat.ONNX
    architecture: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        imported: ImportedModel,
        *,
        profile: NetworkProfile,
        space: PruningSpace,
        architecture: tuple[str, ...],
    ) -> ModelFacts:
        """Return what the importer found and what was read off its graph."""
        return cls(
            inputs=imported.inputs,
            outputs=imported.outputs,
            opset=imported.opset,
            node_count=imported.node_count,
            parameter_count=imported.parameter_count,
            macs=imported.macs,
            is_quantized=imported.is_quantized,
            warnings=imported.warnings,
            profile=profile,
            space=space,
            source_format=imported.source_format,
            architecture=architecture,
        )

    def as_imported(self, graph: bytes) -> ImportedModel:
        """Return the importer's value again, with the graph."""
        return ImportedModel(
            graph=graph,
            inputs=self.inputs,
            outputs=self.outputs,
            opset=self.opset,
            node_count=self.node_count,
            parameter_count=self.parameter_count,
            macs=self.macs,
            is_quantized=self.is_quantized,
            source_format=self.source_format,
            warnings=self.warnings,
        )
