"""What a worker may use, and how it is confined."""

from __future__ import annotations

import json
import os
import pwd
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tightfit_service.adapters.execution import sandbox
from tightfit_service.domain.errors import InvalidRequestError, UnavailableError

ISOLATIONS = ("auto", "required", "off")

DEFAULT_OPEN_FILES = 4_096
DEFAULT_PROCESSES = 4_096


@dataclass(frozen=True, kw_only=True)
class WorkerLimits:
    """What one worker with its children may use; None for no limit.

    Attributes:
        memory_bytes: Anonymous and shared memory held at a time; watched, so that mapped files are free.
        cpu_seconds: Processor time of one unit of work, over all threads.
        disk_bytes: Files of one unit of work, and the largest single file.
        address_space_bytes: RLIMIT_AS of each process. Libraries reserve far more than they use.
        open_files: RLIMIT_NOFILE.
        processes: RLIMIT_NPROC, processes and threads; only where workers have a user of their own,
            because the kernel counts by user.
    """

    memory_bytes: int | None = None
    cpu_seconds: float | None = None
    disk_bytes: int | None = None
    address_space_bytes: int | None = None
    open_files: int = DEFAULT_OPEN_FILES
    processes: int = DEFAULT_PROCESSES


@dataclass(frozen=True, kw_only=True)
class WorkerUser:
    """The unprivileged user that workers run as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> WorkerUser:
        """Look a user up.

        Raises:
            InvalidRequestError: There is none, it is root, or this process may not become it.
        """
        try:
            entry = pwd.getpwnam(name)
        except KeyError as error:
            raise InvalidRequestError(
                f"there is no user {name!r}",
                field="worker_user",
                remedy="name a user of this machine, or leave it empty",
            ) from error
        if entry.pw_uid == 0:
            raise InvalidRequestError(
                "workers cannot be confined as root",
                field="worker_user",
                remedy="name an unprivileged user",
            )
        if os.geteuid() not in {0, entry.pw_uid}:
            raise InvalidRequestError(
                f"only root can start workers as {name!r}",
                field="worker_user",
                remedy="run the service as root, or leave worker_user empty",
            )
        return cls(name=name, uid=entry.pw_uid, gid=entry.pw_gid)

    def own(self, folder: Path) -> None:
        """Give a folder to this user."""
        if os.geteuid() == 0:
            os.chown(folder, self.uid, self.gid)

    def shut_out(self, data_dir: Path, *, except_for: Sequence[str]) -> None:
        """Let this user pass through the data folder, and enter nothing in it but some folders."""
        data_dir.chmod(0o711)
        for entry in data_dir.iterdir():
            if entry.name not in except_for:
                entry.chmod(0o700 if entry.is_dir() else 0o600)

    def check_reachable(self, folder: Path) -> None:
        """Check that this user may enter all folders above one.

        Raises:
            UnavailableError: One is closed to it.
        """
        for parent in folder.resolve().parents:
            found = parent.stat()
            bit = (
                0o100 if found.st_uid == self.uid else 0o010 if found.st_gid == self.gid else 0o001
            )
            if not found.st_mode & bit:
                raise UnavailableError(
                    f"the user {self.name!r} of workers cannot enter {parent}",
                    field="worker_user",
                    remedy=f"let it pass with `chmod o+x {parent}`, or move the data folder",
                )


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """What a worker may use and reach.

    Attributes:
        limits: What it may use with its children.
        isolation: `auto` cuts workers off from the network as far as the platform allows, `required`
            refuses to start where it does not, `off` leaves them connected.
        user: Name of the unprivileged user that it runs as; empty for the server's own.
    """

    limits: WorkerLimits = field(default_factory=WorkerLimits)
    isolation: str = "auto"
    user: str = ""

    def find_user(self) -> WorkerUser | None:
        """Look the user up, where there is one.

        Raises:
            InvalidRequestError: See `WorkerUser.named`.
        """
        return WorkerUser.named(self.user) if self.user else None


def sandboxed(command: Sequence[str], confinement: Confinement) -> list[str]:
    """Return the command that enters the sandbox and then becomes `command`.

    Raises:
        InvalidRequestError: There is no such isolation, or no such user.
    """
    limits, isolation, user = confinement.limits, confinement.isolation, confinement.find_user()
    if isolation not in ISOLATIONS:
        raise InvalidRequestError(
            f"worker_isolation is {isolation!r}",
            field="worker_isolation",
            remedy=f"choose one of {', '.join(ISOLATIONS)}",
        )
    resources = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": limits.open_files}
    if limits.disk_bytes is not None:
        resources["RLIMIT_FSIZE"] = limits.disk_bytes
    if limits.address_space_bytes is not None:
        resources["RLIMIT_AS"] = limits.address_space_bytes
    if user is not None:
        resources["RLIMIT_NPROC"] = limits.processes
    settings = {
        "limits": resources,
        "uid": user.uid if user is not None and os.geteuid() == 0 else None,
        "gid": user.gid if user is not None and os.geteuid() == 0 else None,
        "isolation": isolation,
    }
    return [sys.executable, "-I", "-S", sandbox.__file__, json.dumps(settings), *command]
