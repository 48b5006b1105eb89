"""The Protocols that floor 3 implements; use cases know the outside world through these only.

Graphs travel between ports as serialized ONNX models (`bytes`) in working form: checked, opset and
batch normalised by the importer, every node uniquely named. A port never changes what it was given.
Unless a port says otherwise it may be called from several threads at once.
"""

from tightfit_service.application.ports.artifacts import (
    ArtifactStore,
    ArtifactStores,
    SignedUrl,
    StoredArtifact,
    UploadStaging,
    UploadTicket,
)
from tightfit_service.application.ports.calibration import (
    CalibrationNetworks,
    CalibrationStore,
    DesignedNetwork,
    EmulatorFitter,
)
from tightfit_service.application.ports.datasets import DatasetReader, DataSynthesizer, OpenDataset
from tightfit_service.application.ports.execution import (
    Clock,
    Executor,
    Telemetry,
    WorkHandler,
    WorkResult,
    WorkUnit,
)
from tightfit_service.application.ports.export import (
    Evaluator,
    ExportedModel,
    Exporter,
    QuantizationSettings,
)
from tightfit_service.application.ports.hardware import (
    Emulator,
    FileEmulator,
    TargetCatalogue,
    TargetRecord,
    TargetStore,
)
from tightfit_service.application.ports.measuring import (
    DeviceMeasurer,
    MeasurementOrder,
    NoteCallback,
    RunnerTelemetry,
    no_notes,
)
from tightfit_service.application.ports.models import (
    GraphInspector,
    ImportedModel,
    ModelImporter,
    TensorSignature,
)
from tightfit_service.application.ports.records import (
    AssetRecord,
    AssetStore,
    Claim,
    JobMark,
    JobQueue,
    JobStore,
    Lease,
    LostLife,
    Page,
    QuotaStore,
    ResultExpiry,
)
from tightfit_service.application.ports.techniques import (
    AccuracyOf,
    GraphPass,
    LayerPrecision,
    NetworkPass,
    NodePass,
    PassContext,
    PrecisionProbe,
    PrecisionSensitivity,
    ProgressCallback,
    RecoveryResult,
    RecoverySettings,
    StructuredPruning,
    Trainer,
)

__all__ = [
    "AccuracyOf",
    "ArtifactStore",
    "ArtifactStores",
    "AssetRecord",
    "AssetStore",
    "CalibrationNetworks",
    "CalibrationStore",
    "Claim",
    "Clock",
    "DataSynthesizer",
    "DatasetReader",
    "DesignedNetwork",
    "DeviceMeasurer",
    "Emulator",
    "EmulatorFitter",
    "Evaluator",
    "Executor",
    "ExportedModel",
    "Exporter",
    "FileEmulator",
    "GraphInspector",
    "GraphPass",
    "ImportedModel",
    "JobMark",
    "JobQueue",
    "JobStore",
    "LayerPrecision",
    "Lease",
    "LostLife",
    "MeasurementOrder",
    "ModelImporter",
    "NetworkPass",
    "NodePass",
    "NoteCallback",
    "OpenDataset",
    "Page",
    "PassContext",
    "PrecisionProbe",
    "PrecisionSensitivity",
    "ProgressCallback",
    "QuantizationSettings",
    "QuotaStore",
    "RecoveryResult",
    "RecoverySettings",
    "ResultExpiry",
    "RunnerTelemetry",
    "SignedUrl",
    "StoredArtifact",
    "StructuredPruning",
    "TargetCatalogue",
    "TargetRecord",
    "TargetStore",
    "Telemetry",
    "TensorSignature",
    "Trainer",
    "UploadStaging",
    "UploadTicket",
    "WorkHandler",
    "WorkResult",
    "WorkUnit",
    "no_notes",
]
