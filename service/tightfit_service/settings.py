"""All settings of the service in one frozen object; read from the environment and the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from tightfit_service.domain.errors import InvalidRequestError

ENVIRONMENT_PREFIX = "TIGHTFIT_"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the service.

    Each is read from the environment variable TIGHTFIT_<NAME IN CAPITALS>; the command line
    overrides the environment. The Helm chart's values mirror these names.
    """

    listen: str = "127.0.0.1:50051"
    """Address of the gRPC port; port 0 takes a free one."""
    metrics_listen: str = "127.0.0.1:9464"
    """Address of the Prometheus port; port 0 takes a free one, empty turns it off."""
    metrics_tls: bool = False
    """Whether the Prometheus port speaks TLS, with tls_cert_file and tls_key_file."""
    metrics_client_ca_file: str = ""
    """PEM file of authorities; who scrapes must then have a certificate of theirs. Empty asks for none."""
    health_listen: str = ""
    """Address of a port with the gRPC health service alone, for probes, which speak no TLS and have no
    credentials; empty has none."""
    auth_required: bool = False
    """Whether callers must show who they are: an API key, a token of the identity provider, or a client
    certificate. Without, everybody who reaches the port may do everything."""
    allow_insecure: bool = False
    """Whether the gRPC port may be open to other machines without TLS or without auth_required."""
    access_policy_file: str = ""
    """YAML file with the roles of groups (of the provider's tokens) and of client certificates."""
    tls_cert_file: str = ""
    """PEM file of the gRPC port's certificate chain; read again when it changes. Empty serves plain text."""
    tls_key_file: str = ""
    """PEM file of the certificate's private key."""
    tls_client_ca_file: str = ""
    """PEM file of authorities; clients must then have a certificate of theirs. Empty asks for none."""
    oidc_issuer: str = ""
    """Issuer of the tokens of an identity provider; empty takes none of them."""
    oidc_audience: str = ""
    """Audience that such tokens must be for."""
    oidc_jwks_url: str = ""
    """URL of the provider's keys (https)."""
    oidc_jwks_file: str = ""
    """File with the provider's keys, instead of the URL."""
    oidc_ca_file: str = ""
    """PEM file of the authorities to trust for the URL, instead of the usual ones."""
    oidc_algorithms: str = "RS256,ES256,EdDSA"
    """Algorithms of such tokens' signatures, separated by commas."""
    oidc_roles_claim: str = "groups"
    """Claim with the caller's groups, which access_policy_file gives roles; a path with dots too."""
    oidc_leeway_seconds: float = 30.0
    """By how much the provider's clock may differ."""
    data_dir: Path = Path("tightfit-data")
    """Folder of the database, artifacts, unfinished uploads and worker caches."""
    database_url: str = ""
    """URL of the database that replicas share, postgresql://user:password@host/name; empty takes SQLite
    below data_dir."""
    database_pool_size: int = 10
    """Connections to PostgreSQL that a replica holds; it opens as many more under load."""
    database_statement_seconds: float = 30.0
    """A statement that takes PostgreSQL longer is given up."""
    replica_name: str = ""
    """Name of this replica in events and logs; empty takes the host's."""
    lease_seconds: float = 15.0
    """How long a replica may be silent before others take its jobs over; at least 3."""
    artifact_store: str = "folder"
    """Where artifacts live: `folder` or `s3`."""
    artifact_dir: str = ""
    """Folder of artifacts and unfinished uploads, which replicas may share; empty takes data_dir."""
    s3_url: str = ""
    """URL of the S3-compatible store (http or https, host, port)."""
    s3_bucket: str = "tightfit"
    """Bucket for artifacts; it is created when missing."""
    s3_prefix: str = ""
    """Prefix of all object names in the bucket."""
    s3_access_key: str = ""
    """Access key of the S3 store. Without it and its file the credentials of the environment count:
    AWS_ACCESS_KEY_ID and so on, or the role of the machine or the pod."""
    s3_secret_key: str = ""
    """Secret key of the S3 store."""
    s3_access_key_file: str = ""
    """File with the access key, such as a mounted secret; read again when it changes."""
    s3_secret_key_file: str = ""
    """File with the secret key, such as a mounted secret; read again when it changes."""
    s3_region: str = ""
    """Region of the S3 store; empty means us-east-1."""
    s3_ca_file: str = ""
    """File with the certificates to trust for the S3 store, instead of the usual authorities."""
    s3_addressing: str = "auto"
    """Where the bucket's name goes: `path`, `virtual` (into the host), or `auto` by the host."""
    s3_encryption: str = ""
    """Encryption that the S3 store is asked for: `sse-s3`, `sse-kms`, or empty for the bucket's own."""
    s3_kms_key_id: str = ""
    """Key for `sse-kms`; empty takes the store's default key."""
    s3_presigned_urls: bool = False
    """Whether clients send and fetch bytes directly at the S3 store, at signed addresses that are valid
    for 15 minutes. They must then reach it."""
    s3_public_url: str = ""
    """URL at which clients reach the S3 store; empty takes s3_url."""
    gc_interval_seconds: float = 21_600.0
    """Time between two collections of what nothing refers to; 0 leaves it to `tightfit-service gc`."""
    gc_grace_seconds: float = 86_400.0
    """How old bytes must be before they are set aside, and how long they are then kept; two hours at least."""
    gc_upload_seconds: float = 86_400.0
    """Time after which an upload that nobody goes on with is given up."""
    gc_result_seconds: float = 2_592_000.0
    """Time after which a cached result that nobody asked for is forgotten; those of trials are kept."""
    gc_job_seconds: float = 0.0
    """Time after which a job that ended is deleted with its trials and their files; 0 keeps all until their
    users delete them."""
    executor: str = "local"
    """Where units of work run: `local` in processes of this machine, or `ray` on a Ray cluster."""
    ray_address: str = ""
    """Client server of the Ray cluster, such as ray://ray-head:10001."""
    ray_token_file: str = ""
    """File with the token of the Ray cluster; empty for a cluster that asks for none."""
    ray_node_dir: str = ""
    """Folder on Ray nodes for inputs and scratch files; empty for their temporary folder."""
    gpus_per_unit: float = 0.0
    """Share of a GPU that each worker on Ray is given, such as 0.5; 0 for none."""
    worker_count: int = 1
    """Worker processes; each runs one unit of work at a time."""
    worker_threads: int = 0
    """Threads per worker; 0 divides the machine's cores by the workers."""
    worker_memory_bytes: int = 8 << 30
    """Memory that a worker with its children may hold before it is killed; 0 for no limit."""
    worker_cpu_seconds: float = 0.0
    """Processor time, over all threads, that one unit of work may take; 0 for no limit."""
    worker_disk_bytes: int = 32 << 30
    """Files that one unit of work may write; 0 for no limit."""
    worker_address_space_bytes: int = 0
    """Address space of each worker process (RLIMIT_AS); 0 for no limit. Libraries reserve much more
    than they use, so this is no measure of memory."""
    worker_user: str = ""
    """Unprivileged user that workers run as, where the service runs as root; empty for the service's own."""
    worker_isolation: str = "auto"
    """Cut workers off from the network: `auto` as far as the platform allows, `required` or `off`."""
    concurrent_jobs: int = 1
    """Jobs that run at a time; their trials share the workers."""
    max_upload_bytes: int = 4 << 30
    """Largest model or dataset that is accepted."""
    limit_requests_per_second: float = 1_000.0
    """Calls of one project that may begin per second; 0 for no limit."""
    limit_burst_requests: int = 2_000
    """Calls of one project that may begin at once after a pause; 0 allows those of one second."""
    limit_concurrent_calls: int = 1_000
    """Calls of one project at work, watches and uploads aside; 0 for no limit."""
    limit_concurrent_watches: int = 5_000
    """Open watches of one project; 0 for no limit."""
    limit_concurrent_uploads: int = 64
    """Uploads of one project that are being received; 0 for no limit."""
    default_deadline_seconds: float = 3_600.0
    """Deadline of calls that come without one; watches have none. 0 for none."""
    max_message_bytes: int = 8 << 20
    """Largest message from a client; uploads come in parts of 1 MiB."""
    max_request_depth: int = 64
    """Messages within messages in a request; 0 for gRPC's own limit of 100."""
    max_request_items: int = 500_000
    """Messages and list entries in a request; 0 for no limit."""
    provenance_key_file: str = ""
    """PEM file of the Ed25519 private key that signs results; empty makes one below data_dir."""
    quota_running_jobs: int = 0
    """Jobs of one project that run at a time, the others wait; 0 for any number. An operator sets other
    quotas for single projects with `tightfit-service quota set`."""
    quota_queued_jobs: int = 0
    """Jobs of one project that may wait; 0 for any number."""
    quota_trials: int = 0
    """Trials that one job may ask for; 0 for any number."""
    quota_stored_bytes: int = 0
    """Bytes of models, datasets and results that one project may hold; 0 for any number."""
    traces_endpoint: str = ""
    """URL of an OpenTelemetry collector (OTLP over gRPC, such as http://collector:4317); empty traces
    nothing. Headers come from OTEL_EXPORTER_OTLP_HEADERS. Needs the extra `otel`."""
    drain_seconds: float = 30.0
    """How long running calls may go on after a stop was asked for."""
    log_format: str = "json"
    """`json` for machines or `console` for people."""
    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`."""


def load_settings(
    overrides: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Settings:
    """Return the settings from the environment, with `overrides` that are not None on top.

    Raises:
        InvalidRequestError: A value cannot be read, is out of range, or lacks another that it needs.
    """
    environment = os.environ if environment is None else environment
    hints = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for field in fields(Settings):
        variable = ENVIRONMENT_PREFIX + field.name.upper()
        if variable in environment:
            values[field.name] = _parse(variable, environment[variable], hints[field.name])
    values.update({key: value for key, value in overrides.items() if value is not None})
    settings = Settings(**values)
    _check(settings)
    return settings


def _parse(variable: str, text: str, kind: type[Any]) -> Any:
    if kind is bool:
        if text.lower() in ("1", "true", "yes"):
            return True
        if text.lower() in ("0", "false", "no"):
            return False
        raise InvalidRequestError(
            f"{variable} is {text!r}", field=variable, remedy="write true or false"
        )
    try:
        return kind(text)
    except ValueError as error:
        raise InvalidRequestError(
            f"{variable} is {text!r}, not {kind.__name__}", field=variable, remedy="write a number"
        ) from error


def _check(settings: Settings) -> None:
    if settings.artifact_store not in ("folder", "s3"):
        raise InvalidRequestError(
            f"artifact_store is {settings.artifact_store!r}",
            field="artifact_store",
            remedy="choose folder or s3",
        )
    if settings.artifact_store == "s3":
        needed = ["s3_url", "s3_bucket"]
        if settings.s3_access_key:
            needed.append("s3_secret_key")
        if settings.s3_access_key_file or settings.s3_secret_key_file:
            needed += ["s3_access_key_file", "s3_secret_key_file"]
        for name in needed:
            if not getattr(settings, name):
                raise InvalidRequestError(
                    f"{name} is needed when artifacts live in S3",
                    field=name,
                    remedy=f"set {ENVIRONMENT_PREFIX}{name.upper()}",
                )
    if settings.metrics_tls and not settings.tls_cert_file:
        raise InvalidRequestError(
            "metrics_tls needs a certificate",
            field="metrics_tls",
            remedy="set tls_cert_file and tls_key_file, or leave metrics_tls",
        )
    if settings.metrics_client_ca_file and not settings.metrics_tls:
        raise InvalidRequestError(
            "metrics_client_ca_file does nothing without metrics_tls",
            field="metrics_client_ca_file",
            remedy="set metrics_tls too",
        )
    for name, least in (
        ("worker_count", 1),
        ("concurrent_jobs", 1),
        ("max_upload_bytes", 1),
        ("max_message_bytes", 2 << 20),
        *(
            (field.name, 0)
            for field in fields(Settings)
            if field.name.startswith(("limit_", "quota_"))
        ),
        ("database_pool_size", 1),
        ("lease_seconds", 3),
        ("default_deadline_seconds", 0),
        ("max_request_depth", 0),
        ("max_request_items", 0),
    ):
        if getattr(settings, name) < least:
            raise InvalidRequestError(
                f"{name} is {getattr(settings, name)}", field=name, remedy=f"at least {least}"
            )
