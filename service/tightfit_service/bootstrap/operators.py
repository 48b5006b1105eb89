"""Whoever runs a command of the service at the database itself."""

from __future__ import annotations

import os
import pwd
import socket


def operator_name() -> str:
    """Return account and machine of this process; the user of a container may have no name."""
    try:
        account = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        account = str(os.getuid())
    return f"{account}@{socket.gethostname()}"
