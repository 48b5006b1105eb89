"""The tables of the record store: columns for what is queried, a JSON document for the rest."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)

# names of constraints must not differ between databases, or migrations could not drop them
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcTime(TypeDecorator[datetime]):
    """A moment, stored in UTC; SQLite has no time zones and would lose them."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert an aware time to UTC."""
        del dialect
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return an aware time in UTC."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_DIGEST = String(64)
_NAME = String(255)

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", _NAME, primary_key=True),
    Column("project", _NAME, nullable=False),
    Column("state", String(16), nullable=False),
    Column("create_time", UtcTime, nullable=False),
    # NULL rather than "" where there is none: NULLs never collide in the unique constraint
    Column("request_id", _NAME),
    Column("revision", Integer, nullable=False),
    Column("last_sequence", Integer, nullable=False),
    Column("model_digest", _DIGEST, nullable=False),
    Column("dataset_digest", _DIGEST),
    # minus the priority, so that one ascending index holds the order of the queue; the default is
    # for replicas of the version before, which do not know the column
    Column("queue_rank", Integer, nullable=False, server_default=text("0")),
    # of the lease that the job is held under, NULL when nobody holds it; here besides in `job_leases`,
    # so that a write of the job checks it in one statement
    Column("holder_token", Integer),
    Column("document", JSON, nullable=False),
    UniqueConstraint("project", "request_id"),
    Index(None, "project", "create_time", "job_id"),
    Index(None, "state", "create_time"),
    Index(None, "state", "project", "queue_rank", "create_time", "job_id"),
)

job_leases = Table(
    # apart from `jobs`, because heartbeats write these rows every few seconds and those are wide
    "job_leases",
    metadata,
    Column("job_id", _NAME, ForeignKey(jobs.c.job_id, ondelete="CASCADE"), primary_key=True),
    # grows with every claim; who writes with an older one has lost the job
    Column("token", Integer, nullable=False),
    Column("owner", _NAME, nullable=False),
    Column("claim_time", UtcTime),
    # by the database's clock; NULL when nobody holds the job
    Column("expire_time", UtcTime, index=True),
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
    # told by heartbeats: no unit of work of the job has a worker, and some want one
    Column("only_waits", Boolean, nullable=False, server_default=false()),
    # lives of the job that ended without an orderly stop, in a row on one unit of work
    Column("losses", JSON, nullable=False),
)
# every replica asks once a second which of its jobs are to be cancelled: few of all that ever ran
Index(
    "ix_job_leases_cancels",
    job_leases.c.owner,
    postgresql_where=job_leases.c.cancel_requested,
    sqlite_where=job_leases.c.cancel_requested,
)

job_teachers = Table(
    "job_teachers",
    metadata,
    Column("job_id", _NAME, ForeignKey(jobs.c.job_id, ondelete="CASCADE"), primary_key=True),
    Column("digest", _DIGEST, primary_key=True, index=True),
)

project_quotas = Table(
    "project_quotas",
    metadata,
    Column("project", _NAME, primary_key=True),
    # NULL takes the deployment's default, 0 is none
    Column("running_jobs", BigInteger),
    Column("queued_jobs", BigInteger),
    Column("trials", BigInteger),
    Column("stored_bytes", BigInteger),
)

trials = Table(
    "trials",
    metadata,
    Column("job_id", _NAME, ForeignKey(jobs.c.job_id, ondelete="CASCADE"), primary_key=True),
    Column("trial_index", Integer, primary_key=True, autoincrement=False),
    Column("input_digest", String(128), nullable=False, index=True),
    Column("document", JSON, nullable=False),
)

trial_artifacts = Table(
    "trial_artifacts",
    metadata,
    Column("job_id", _NAME, ForeignKey(jobs.c.job_id, ondelete="CASCADE"), primary_key=True),
    Column("trial_index", Integer, primary_key=True, autoincrement=False),
    Column("artifact_name", _NAME, primary_key=True),
    Column("digest", _DIGEST, nullable=False, index=True),
)

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", _NAME, ForeignKey(jobs.c.job_id, ondelete="CASCADE"), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("document", JSON, nullable=False),
)

work_results = Table(
    "work_results",
    metadata,
    Column("project", _NAME, primary_key=True),
    Column("input_digest", String(128), primary_key=True),
    Column("document", JSON, nullable=False),
    # when somebody last asked for it, to the hour; NULL from servers that do not note it
    Column("use_time", UtcTime, index=True),
)

work_outputs = Table(
    "work_outputs",
    metadata,
    Column("project", _NAME, primary_key=True),
    Column("input_digest", String(128), primary_key=True),
    Column("output_name", _NAME, primary_key=True),
    Column("digest", _DIGEST, nullable=False, index=True),
    # NULL from servers that did not note it
    Column("size_bytes", BigInteger),
    ForeignKeyConstraint(
        ["project", "input_digest"],
        [work_results.c.project, work_results.c.input_digest],
        ondelete="CASCADE",
    ),
    # all that the sum over a project needs, so that it reads nothing else
    Index(None, "project", "digest", "size_bytes"),
)

unit_deaths = Table(
    "unit_deaths",
    metadata,
    Column("project", _NAME, primary_key=True),
    Column("input_digest", String(128), primary_key=True),
    Column("death_count", Integer, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("last_time", UtcTime, nullable=False, index=True),
)

unit_claims = Table(
    "unit_claims",
    metadata,
    Column("project", _NAME, primary_key=True),
    Column("input_digest", String(128), primary_key=True),
    # of this life of a server, as that of `job_leases`
    Column("owner", _NAME, nullable=False),
    # by the database's clock
    Column("expire_time", UtcTime, nullable=False, index=True),
)

assets = Table(
    "assets",
    metadata,
    Column("project", _NAME, primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("asset_id", _NAME, primary_key=True),
    Column("digest", _DIGEST, nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("display_name", String, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("description", JSON, nullable=False),
)

calibrations = Table(
    "calibrations",
    metadata,
    Column("project", _NAME, primary_key=True),
    Column("target_name", _NAME, primary_key=True),
    Column("runtime_name", _NAME, primary_key=True),
    Column("create_time", UtcTime, nullable=False),
    Column("document", JSON, nullable=False),
)

hardware_targets = Table(
    "hardware_targets",
    metadata,
    Column("project", _NAME, primary_key=True),
    Column("target_name", _NAME, primary_key=True),
    Column("create_time", UtcTime, nullable=False),
    Column("document", JSON, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("secret_hash", _DIGEST, nullable=False),
    Column("display_name", String, nullable=False),
    Column("grants", JSON, nullable=False),
    Column("creator", _NAME, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("expire_time", UtcTime),
    Column("revoke_time", UtcTime),
    Column("last_use_time", UtcTime),
)

audit_events = Table(
    # a trigger of the migration refuses to change or delete what is in it
    "audit_events",
    metadata,
    # SQLite counts rows by itself in a column of exactly this type
    Column("event_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("event_time", UtcTime, nullable=False),
    Column("principal", _NAME, nullable=False),
    Column("method", _NAME, nullable=False),
    Column("project", _NAME, nullable=False),
    Column("resource", String(1024), nullable=False),
    Column("code", String(32), nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("address", _NAME, nullable=False),
    Index(None, "project", "event_id"),
    Index(None, "principal", "event_id"),
)
