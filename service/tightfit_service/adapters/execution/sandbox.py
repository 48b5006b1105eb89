"""Puts a worker into its sandbox: limits, an unprivileged user, no network; then becomes the worker.

Runs as a script between the server and the worker, in the worker's own process, before any thread
exists: `sandbox.py SETTINGS COMMAND...` with the settings as JSON. Standard library only.

What cuts the network, both tried: a network namespace of its own, with a user namespace where the
kernel allows that (user_namespaces(7): a process in one can neither trace processes outside nor read
their environment), and a filter of system calls (seccomp(2)) that refuses to make sockets.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ISOLATION_VARIABLE = "TIGHTFIT_WORKER_ISOLATION"
"""Environment variable: what cuts the worker off, such as `namespace,seccomp`; empty for nothing."""

REFUSED = 78
"""Exit status when isolation is required and the platform offers none (EX_CONFIG of sysexits.h)."""

_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWUSER = 0x1000_0000
_CLONE_NEWNET = 0x4000_0000

# numbers of system calls: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h
# of Linux; what makes sockets, and what reaches into other processes or the kernel
_DENIED = {
    "x86_64": (
        0xC000_003E,
        {
            "socket": 41,
            "io_uring_setup": 425,
            "ptrace": 101,
            "process_vm_readv": 310,
            "process_vm_writev": 311,
            "pidfd_getfd": 438,
            "kcmp": 312,
            "unshare": 272,
            "setns": 308,
            "mount": 165,
            "umount2": 166,
            "pivot_root": 155,
            "chroot": 161,
            "bpf": 321,
            "perf_event_open": 298,
            "userfaultfd": 323,
            "open_by_handle_at": 304,
            "add_key": 248,
            "request_key": 249,
            "keyctl": 250,
            "init_module": 175,
            "finit_module": 313,
            "delete_module": 176,
            "kexec_load": 246,
            "kexec_file_load": 320,
            "reboot": 169,
        },
    ),
    "aarch64": (
        0xC000_00B7,
        {
            "socket": 198,
            "io_uring_setup": 425,
            "ptrace": 117,
            "process_vm_readv": 270,
            "process_vm_writev": 271,
            "pidfd_getfd": 438,
            "kcmp": 272,
            "unshare": 97,
            "setns": 268,
            "mount": 40,
            "umount2": 39,
            "pivot_root": 41,
            "chroot": 51,
            "bpf": 280,
            "perf_event_open": 241,
            "userfaultfd": 282,
            "open_by_handle_at": 265,
            "add_key": 217,
            "request_key": 218,
            "keyctl": 219,
            "init_module": 105,
            "finit_module": 273,
            "delete_module": 106,
            "kexec_load": 104,
            "kexec_file_load": 294,
            "reboot": 142,
        },
    ),
}
_X32_BIT = 0x4000_0000

# linux/bpf_common.h and linux/seccomp.h
_LOAD_WORD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF_0000, 0x0005_0000 | errno.EPERM
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET = 0, 4


def main(settings: Mapping[str, Any], command: Sequence[str]) -> None:
    """Apply the settings to this process and become the command.

    Args:
        settings: `limits` (name of an RLIMIT_ constant to value), `uid` and `gid` or None, and
            `isolation`: `auto`, `required` or `off`.
        command: Program and arguments.
    """
    _limit(settings["limits"])
    if settings["uid"] is not None:
        _become(settings["uid"], settings["gid"])
    held = "" if settings["isolation"] == "off" else ",".join(_isolate())
    if not held and settings["isolation"] == "required":
        sys.stdout.write("this platform refuses network namespaces and system call filters\n")
        sys.stdout.flush()
        os._exit(REFUSED)
    environment = {**os.environ, ISOLATION_VARIABLE: held}
    os.execvpe(command[0], list(command), environment)  # noqa: S606  # that is what this file is for


def _limit(limits: Mapping[str, int]) -> None:
    for name, value in limits.items():
        number = getattr(resource, name, None)
        if number is not None:
            _, hard = resource.getrlimit(number)
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (most, most))


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # a change of user makes /proc/self the property of root, where the maps of namespaces are
    _prctl(_PR_SET_DUMPABLE, 1)


def _isolate() -> list[str]:
    """Cut the process off as far as the platform allows; return what holds."""
    held = []
    if sys.platform == "linux":
        for name, enter in (("user+namespace", _own_user_and_network), ("namespace", _own_network)):
            if _would_work(enter):
                enter()
                held.append(name)
                break
        with suppress(OSError):
            _prctl(_PR_SET_NO_NEW_PRIVS, 1)
            _filter_calls()
            held.append("seccomp")
    return held


def _would_work(enter: Callable[[], None]) -> bool:
    """Try it in a child: half of it done could not be undone."""
    child = os.fork()
    if child == 0:
        try:
            enter()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _own_user_and_network() -> None:
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _own_network() -> None:
    _call("unshare", _CLONE_NEWNET)


def _filter_calls() -> None:
    if platform.machine() not in _DENIED:
        raise OSError(errno.ENOSYS, "no filter for this architecture")
    architecture, denied = _DENIED[platform.machine()]
    numbers = sorted(denied.values())
    # each test jumps over what follows it to the last instruction, which refuses
    tests = [(_JUMP_AT_LEAST, _X32_BIT), *((_JUMP_EQUAL, number) for number in numbers)]
    program = [
        (_LOAD_WORD, 0, 0, _ARCHITECTURE_OFFSET),
        (_JUMP_EQUAL, 0, len(tests) + 2, architecture),
        (_LOAD_WORD, 0, 0, _NUMBER_OFFSET),
        *((code, len(tests) - place, 0, value) for place, (code, value) in enumerate(tests)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    )
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header))


def _prctl(option: int, *values: int) -> None:
    _call("prctl", option, *(ctypes.c_ulong(v) for v in (*values, 0, 0, 0, 0)[:4]))


def _call(function: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
