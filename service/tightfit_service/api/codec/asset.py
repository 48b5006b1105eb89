"""Models, datasets and the progress of their uploads."""

from __future__ import annotations

from tightfit.v1 import dataset_pb2, model_pb2, transfer_pb2
from tightfit_service.api import resource_names
from tightfit_service.api.codec.plain_data import struct_to_proto
from tightfit_service.api.codec.times import timestamp_to_proto
from tightfit_service.application.ports import AssetRecord, SignedUrl
from tightfit_service.application.use_cases import UploadStatus


def model_to_proto(record: AssetRecord) -> model_pb2.Model:
    """Return a model."""
    return model_pb2.Model(
        name=resource_names.MODEL.name(record.project, record.asset_id),
        display_name=record.display_name,
        digest=record.digest,
        size_bytes=record.size_bytes,
        create_time=timestamp_to_proto(record.create_time),
        facts=struct_to_proto(record.description),
    )


def dataset_to_proto(record: AssetRecord) -> dataset_pb2.Dataset:
    """Return a dataset."""
    return dataset_pb2.Dataset(
        name=resource_names.DATASET.name(record.project, record.asset_id),
        display_name=record.display_name,
        digest=record.digest,
        size_bytes=record.size_bytes,
        create_time=timestamp_to_proto(record.create_time),
        facts=struct_to_proto(record.description),
    )


def model_upload_to_proto(status: UploadStatus, *, project_id: str) -> model_pb2.ModelUpload:
    """Return how far the upload of a model is."""
    return model_pb2.ModelUpload(
        name=resource_names.UPLOAD.name(project_id, status.upload_id),
        committed_bytes=status.committed_bytes,
        model=None if status.asset is None else model_to_proto(status.asset),
        direct=None if status.direct is None else signed_url_to_proto(status.direct),
    )


def dataset_upload_to_proto(status: UploadStatus, *, project_id: str) -> dataset_pb2.DatasetUpload:
    """Return how far the upload of a dataset is."""
    return dataset_pb2.DatasetUpload(
        name=resource_names.UPLOAD.name(project_id, status.upload_id),
        committed_bytes=status.committed_bytes,
        dataset=None if status.asset is None else dataset_to_proto(status.asset),
        direct=None if status.direct is None else signed_url_to_proto(status.direct),
    )


def signed_url_to_proto(signed: SignedUrl) -> transfer_pb2.DirectTransfer:
    """Return where bytes may be sent or fetched directly."""
    return transfer_pb2.DirectTransfer(
        method=signed.method,
        url=signed.url,
        headers=dict(signed.headers),
        expire_time=timestamp_to_proto(signed.expire_time),
    )
