"""Columns of the platform's tables that this worker reads or writes, under the platform's own names.

The migration creates each only where it does not exist, and refuses an existing one that lacks what is listed here.
The engine's own tables are in `migrations/sql`, because their functions are, too.
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    cast,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ENUM, JSONB, UUID

from worker.domain import WorkspaceStatus

platform = MetaData(schema="public")
own = MetaData(schema="worker")

_NOW = text("now()")
_NEW_ID = text("gen_random_uuid()")


def _id() -> Column[str]:
    return Column("id", UUID(as_uuid=False), primary_key=True, server_default=_NEW_ID)


def _time(name: str, *, now: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), server_default=_NOW if now else None)


workspace_status = ENUM(*(str(s) for s in WorkspaceStatus), name="workspace_status", schema="public", create_type=False)

workspaces = Table(
    "workspaces",
    platform,
    _id(),
    Column("name", Text, nullable=False),
    Column("role", Text),
    Column("tier", Integer, server_default=text("1")),
    Column("status", workspace_status, server_default="provisioning"),
    Column("source_bundle_id", Text),
    Column("agent_card", JSONB),
    Column("url", Text),
    Column("parent_id", UUID(as_uuid=False), ForeignKey("public.workspaces.id"), index=True),
    Column("forwarded_to", UUID(as_uuid=False), ForeignKey("public.workspaces.id")),
    _time("last_heartbeat_at"),
    Column("last_error_rate", Float, server_default=text("0")),
    Column("last_sample_error", Text, comment="also carries the provision failure that people see"),
    Column("active_tasks", Integer, server_default=text("0")),
    Column("uptime_seconds", Integer, server_default=text("0")),
    Column("current_task", Text),
    Column("awareness_namespace", Text),
    Column("runtime", Text, server_default="langgraph"),
    Column("workspace_dir", Text, comment="NULL: a named volume"),
    Column("workspace_access", String(20), nullable=False, server_default="none"),
    Column("budget_limit", BigInteger),
    Column("monthly_spend", BigInteger, nullable=False, server_default=text("0")),
    Column("hibernation_idle_minutes", Integer),
    _time("last_outbound_at"),
    Column("max_concurrent_tasks", Integer, nullable=False, server_default=text("1")),
    Column("instance_id", Text),
    _time("created_at", now=True),
    _time("updated_at", now=True),
    CheckConstraint("workspace_access IN ('none', 'read_only', 'read_write')", name="workspaces_access"),
    Index("workspaces_status", "status"),
)

#: As text, because a newer platform's enum may hold values that this release does not know; NULL means the default.
status_text = func.coalesce(cast(workspaces.c.status, Text), WorkspaceStatus.PROVISIONING.value)

workspace_secrets = Table(
    "workspace_secrets",
    platform,
    _id(),
    Column("workspace_id", UUID(as_uuid=False), ForeignKey("public.workspaces.id"), nullable=False),
    Column("key", Text, nullable=False),
    Column("encrypted_value", LargeBinary, nullable=False),
    Column("encryption_version", Integer, nullable=False, server_default=text("0")),
    _time("created_at", now=True),
    _time("updated_at", now=True),
    UniqueConstraint("workspace_id", "key"),
)

global_secrets = Table(
    "global_secrets",
    platform,
    _id(),
    Column("key", Text, nullable=False, unique=True),
    Column("encrypted_value", LargeBinary, nullable=False),
    Column("encryption_version", Integer, nullable=False, server_default=text("0")),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
)

workspace_auth_tokens = Table(
    "workspace_auth_tokens",
    platform,
    _id(),
    Column("workspace_id", UUID(as_uuid=False), ForeignKey("public.workspaces.id", ondelete="CASCADE"), nullable=False),
    Column("token_hash", LargeBinary, nullable=False, unique=True, comment="SHA-256 of the token, raw 32 bytes"),
    Column("prefix", Text, nullable=False, comment="the first 8 characters of the token"),
    _time("created_at", now=True),
    _time("last_used_at"),
    _time("revoked_at"),
    Index("workspace_auth_tokens_live", "workspace_id", postgresql_where=text("revoked_at IS NULL")),
)

structure_events = Table(
    "structure_events",
    platform,
    _id(),
    Column("event_type", Text, nullable=False),
    Column("workspace_id", UUID(as_uuid=False), index=True, comment="no foreign key: history outlives the workspace"),
    Column("agent_id", UUID(as_uuid=False)),
    Column("target_id", UUID(as_uuid=False)),
    Column("payload", JSONB),
    Column("created_at", DateTime(timezone=True), server_default=_NOW, index=True),
)

canvas_layouts = Table(
    "canvas_layouts",
    platform,
    Column("workspace_id", UUID(as_uuid=False), ForeignKey("public.workspaces.id", ondelete="CASCADE"), primary_key=True),
    Column("x", Float, nullable=False, server_default=text("0")),
    Column("y", Float, nullable=False, server_default=text("0")),
    Column("collapsed", Boolean, server_default=text("false")),
)

workspace_schedules = Table(
    "workspace_schedules",
    platform,
    _id(),
    Column("workspace_id", UUID(as_uuid=False), ForeignKey("public.workspaces.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    _time("updated_at", now=True),
    UniqueConstraint("workspace_id", "name"),
)

# ---- the worker's own, as much of them as is read through SQLAlchemy; made by migrations/sql/0001_engine.sql

ledger = Table(
    "ledger",
    own,
    Column("id", BigInteger, primary_key=True),
    Column("backend", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("job_id", UUID(as_uuid=False)),
    Column("state", Text, nullable=False),
    Column("handle", Text),
    Column("gone_at", DateTime(timezone=True)),
)

placements = Table(
    "placements",
    own,
    Column("workspace_id", UUID(as_uuid=False), primary_key=True),
    Column("org", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("model", Text, comment="as asked for at creation; the platform's table has no column for it"),
)

builds = Table(
    "builds",
    own,
    Column("key", Text, primary_key=True),
    Column("runtime", Text, nullable=False),
    Column("sha", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("process_id", Integer),
    Column("job_id", UUID(as_uuid=False)),
    Column("reference", Text),
    Column("error", JSONB),
    Column("log", Text, nullable=False),
    Column("started_at", DateTime(timezone=True)),
    Column("finished_at", DateTime(timezone=True)),
)

processes = Table(
    "processes",
    own,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("queues", ARRAY(Text), nullable=False),
    Column("lease_until", DateTime(timezone=True), nullable=False),
)
