"""The way to an S3-compatible store: address, credentials, retries, and what its failures mean."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.credentials.providers import (
    ChainedProvider,
    EnvAWSProvider,
    IamAwsProvider,
    Provider,
)
from minio.error import MinioException, S3Error, ServerError

from tightfit_service.adapters.storage.store_metering import S3, TRANSFER, CountedRetry, TimedPool
from tightfit_service.application.ports import StoreTelemetry
from tightfit_service.domain.errors import (
    InvalidRequestError,
    ResourceExhaustedError,
    TightfitError,
    UnavailableError,
)

Result = TypeVar("Result")

MISSING = {"NoSuchKey", "NoSuchObject"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "EntityTooLarge"}
_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_NOT_ENCRYPTED = {"KMS.NotFoundException", "KMS.DisabledException", "KMSNotConfigured"}
_RETRIED_STATUSES = (429, 500, 502, 503, 504)
_LONGEST_WAIT_SECONDS = 8.0

DEFAULT_REGION = "us-east-1"
ENCRYPTIONS = ("", "sse-s3", "sse-kms")
ADDRESS_STYLES = ("auto", "path", "virtual")


@dataclass(frozen=True, kw_only=True)
class S3Options:
    """How a store is reached.

    Attributes:
        url: `http://HOST:PORT` or `https://HOST:PORT`.
        access_key: Empty takes `access_key_file`, and without that the credentials of the
            environment: AWS_ACCESS_KEY_ID and so on, or the role of the machine or the pod.
        access_key_file: File with the key; it and `secret_key_file` are read anew when they change.
        region: Empty means `us-east-1`; a known region saves asking, and some stores refuse to tell.
        ca_file: Certificates to trust instead of the usual authorities.
        addressing: `path` puts the bucket into the path, `virtual` into the host; `auto` does what
            suits the host.
        encryption: Empty leaves encryption to the bucket, `sse-s3` asks for the store's own keys,
            `sse-kms` for `kms_key_id`.
        public_url: How clients reach the store where that is not `url`; for signed URLs.
        timeout_seconds: For connecting (5 at most), and for each wait for bytes.
        retry_count: Repetitions of a request that broke or that the store was too busy for.
        retry_seconds: First wait between them; it doubles each time, with some jitter.
        patience_seconds: How long whole transfers are repeated while the store is away.
    """

    url: str
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    access_key_file: Path | str | None = None
    secret_key_file: Path | str | None = None
    region: str = ""
    ca_file: Path | str | None = None
    addressing: str = "auto"
    encryption: str = ""
    kms_key_id: str = ""
    public_url: str = ""
    timeout_seconds: float = 30.0
    retry_count: int = 5
    retry_seconds: float = 0.2
    patience_seconds: float = 90.0


class StoreAwayError(UnavailableError):
    """The store did not answer, or asked to come back later: the same may work in a moment."""


class FileCredentials(Provider):
    """Credentials from two files, such as mounted secrets; read again when a file was replaced.

    Raises:
        UnavailableError: A file cannot be read or is empty.
    """

    def __init__(self, access_key_file: Path, secret_key_file: Path) -> None:
        self._files = (access_key_file, secret_key_file)
        self._seen: tuple[int, ...] = ()
        self._credentials: Credentials | None = None

    def retrieve(self) -> Credentials:
        """Return the credentials as the files say now."""
        try:
            seen = tuple(file.stat().st_mtime_ns for file in self._files)
            if self._credentials is None or seen != self._seen:
                access_key, secret_key = (file.read_text().strip() for file in self._files)
                self._credentials = Credentials(access_key, secret_key)
                self._seen = seen
        except (OSError, ValueError) as error:
            raise UnavailableError(
                "the credentials of the object store cannot be read",
                field="s3_secret_key_file",
                remedy="check s3_access_key_file and s3_secret_key_file",
            ) from error
        return self._credentials


def open_client(options: S3Options, *, telemetry: StoreTelemetry, public: bool = False) -> Minio:
    """Return a client for the store; `public` takes the address that clients use.

    Raises:
        InvalidRequestError: The address, the addressing or the encryption cannot be.
    """
    url = (options.public_url or options.url) if public else options.url
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/"):
        raise InvalidRequestError(
            f"{url!r} is not the address of an object store",
            field="s3_public_url" if public and options.public_url else "s3_url",
            remedy="give http://HOST:PORT or https://HOST:PORT",
        )
    _check_choice("s3_addressing", options.addressing, ADDRESS_STYLES)
    _check_choice("s3_encryption", options.encryption, ENCRYPTIONS)
    client = Minio(
        parts.netloc,
        credentials=_credentials(options),
        secure=parts.scheme == "https",
        region=options.region or DEFAULT_REGION,
        http_client=_http_pool(options, telemetry),
    )
    if options.addressing == "path":
        client.disable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
    elif options.addressing == "virtual":
        client.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
    return client


def encryption_headers(options: S3Options) -> dict[str, str]:
    """Return the headers that ask the store to encrypt what it is given."""
    name = "X-Amz-Server-Side-Encryption"
    if options.encryption == "sse-s3":
        return {name: "AES256"}
    if options.encryption == "sse-kms":
        headers = {name: "aws:kms"}
        if options.kms_key_id:
            headers[f"{name}-Aws-Kms-Key-Id"] = options.kms_key_id
        return headers
    return {}


@contextmanager
def translated() -> Iterator[None]:
    """Turn failures of the store into errors of the domain.

    Raises:
        StoreAwayError, UnavailableError, ResourceExhaustedError: As the store's answer says.
    """
    try:
        yield
    except (MinioException, urllib3.exceptions.HTTPError) as error:
        raise unusable(error) from error


def unusable(error: Exception) -> TightfitError:
    """Return the error of the domain for a failure of the store."""
    code = error.code if isinstance(error, S3Error) else type(error).__name__
    if code in _FULL:
        return ResourceExhaustedError(
            "the object store has no room left",
            remedy="raise its quota or delete jobs, models and datasets",
        )
    if code in _REFUSED:
        return UnavailableError(
            f"the object store refuses the credentials ({code})",
            remedy="check the access key, the secret key and the policy of the bucket",
        )
    if code in _NOT_ENCRYPTED:
        return UnavailableError(
            f"the object store cannot encrypt as it was asked to ({code})",
            field="s3_encryption",
            remedy="check s3_encryption and s3_kms_key_id, and that the store has the key",
        )
    if code == "NoSuchBucket":
        return UnavailableError(
            "the bucket for artifacts does not exist", remedy="make it, or name another"
        )
    kind = StoreAwayError if _may_pass(error) else UnavailableError
    return kind(
        f"the object store cannot be used at present ({code})",
        remedy="try again; check its address and its state",
    )


def _may_pass(error: Exception) -> bool:
    if isinstance(error, S3Error):
        status = getattr(error.response, "status", 0)
        return status in _RETRIED_STATUSES or error.code in {"RequestTimeout", "BadDigest"}
    if isinstance(error, ServerError):
        return error.status_code in _RETRIED_STATUSES
    return isinstance(error, urllib3.exceptions.HTTPError)


def _credentials(options: S3Options) -> Provider:
    if options.access_key:
        return _Fixed(Credentials(options.access_key, options.secret_key))
    if options.access_key_file is not None and options.secret_key_file is not None:
        return FileCredentials(Path(options.access_key_file), Path(options.secret_key_file))
    return ChainedProvider([EnvAWSProvider(), IamAwsProvider()])


class _Fixed(Provider):
    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def retrieve(self) -> Credentials:
        return self._credentials


def _http_pool(options: S3Options, telemetry: StoreTelemetry) -> urllib3.PoolManager:
    retries = CountedRetry(
        total=options.retry_count,
        backoff_factor=options.retry_seconds,
        backoff_jitter=options.retry_seconds,
        backoff_max=_LONGEST_WAIT_SECONDS,
        status_forcelist=_RETRIED_STATUSES,
        # also POST: opening and completing an upload in parts may be repeated, see `S3Bucket`
        allowed_methods=None,
        # the answer of the last attempt is returned, so that its error code is not lost
        raise_on_status=False,
    )
    retries.telemetry = telemetry
    return TimedPool(
        telemetry=telemetry,
        timeout=urllib3.Timeout(
            connect=min(options.timeout_seconds, 5.0), read=options.timeout_seconds
        ),
        maxsize=16,
        cert_reqs="CERT_REQUIRED",
        ca_certs=str(options.ca_file) if options.ca_file else None,
        retries=retries,
    )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidRequestError(
            f"{name} is {value!r}",
            field=name,
            remedy=f"choose one of {', '.join(choice or 'empty' for choice in choices)}",
        )


def patiently(action: Callable[[], Result], *, seconds: float, telemetry: StoreTelemetry) -> Result:
    """Return what a whole transfer gives, repeated while the store is away, for so many seconds.

    Raises:
        StoreAwayError: It did not come back in time.
    """
    end = time.monotonic() + seconds
    pause = 0.5
    while True:
        try:
            return action()
        except StoreAwayError:
            if time.monotonic() + pause > end:
                raise
            telemetry.store_retried(S3, TRANSFER)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_WAIT_SECONDS)
