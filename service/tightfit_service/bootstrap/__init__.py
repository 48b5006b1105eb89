"""Composition: the only room that names concrete classes, in the server and in its workers."""

from __future__ import annotations

from tightfit_service.bootstrap.access import create_admin_key
from tightfit_service.bootstrap.clock import SystemClock
from tightfit_service.bootstrap.hardware import catalogue, emulators, missing_extras, tool_versions
from tightfit_service.bootstrap.keys import public_keys
from tightfit_service.bootstrap.observability import configure_logging
from tightfit_service.bootstrap.operators import operator_name
from tightfit_service.bootstrap.server import Server, build_server, diagnose, serve
from tightfit_service.bootstrap.storage import collect, default_quota, migrate, open_records
from tightfit_service.bootstrap.workers import handler_table, pack_file, run_worker

__all__ = [
    "Server",
    "SystemClock",
    "build_server",
    "catalogue",
    "collect",
    "configure_logging",
    "create_admin_key",
    "default_quota",
    "diagnose",
    "emulators",
    "handler_table",
    "migrate",
    "missing_extras",
    "open_records",
    "operator_name",
    "pack_file",
    "public_keys",
    "run_worker",
    "serve",
    "tool_versions",
]
