"""Stores on a real S3 server, and the staging of uploads beside the artifacts that it completes to."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fakes.s3_gateway import S3Gateway
from tightfit_service.adapters.storage.s3_artifacts import S3ArtifactStores
from tightfit_service.adapters.storage.s3_bucket import S3Bucket
from tightfit_service.adapters.storage.s3_connection import S3Options
from tightfit_service.application.ports import ArtifactStores, UploadStaging


@dataclass(frozen=True)
class Uploads:
    """A staging with the artifacts that it completes to; `reopen` is another replica, or a later life."""

    artifacts: ArtifactStores
    reopen: Callable[[], UploadStaging]
    staging: UploadStaging
    finds_partial: bool
    """Whether another replica sees what was appended, but not flushed."""


def open_s3(gateway: S3Gateway, **options: Any) -> S3ArtifactStores:
    """Return stores of their own on the gateway, below a prefix that nobody else uses."""
    bucket = open_bucket(gateway, **options)
    return S3ArtifactStores(bucket=bucket, prefix=f"{uuid.uuid4().hex}/", offers_urls=True)


def open_bucket(gateway: S3Gateway, **options: Any) -> S3Bucket:
    """Return the bucket of the tests on the gateway."""
    bucket = S3Bucket(
        options=S3Options(
            url=gateway.url,
            access_key=gateway.access_key,
            secret_key=gateway.secret_key,
            **options,
        ),
        name="tightfit-test",
    )
    bucket.ensure(prefix="")
    return bucket
