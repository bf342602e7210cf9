"""The few Linux system calls that Python has no function for, through ctypes."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from functools import lru_cache

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_MOUNT_SETATTR = 442
_CURRENT_FOLDER, _RECURSIVE = -100, 0x8000
_CAPABILITY_VERSION = 0x20080522
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def check(result: int, what: str) -> int:
    """`result` of a call, or OSError if it is negative."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def syscall(what: str, number: int, *arguments: object) -> int:
    """A raw system call; whole numbers are passed as 64 bits."""
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return check(_libc.syscall(ctypes.c_long(number), *values), what)


def unshare(flags: int) -> None:
    """Leave the namespaces in `flags` for new ones."""
    check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """Enter the namespace that `descriptor` stands for."""
    check(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(kind)), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    encoded = [text.encode() if text is not None else None for text in (source, target, kind, options)]
    check(
        _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]),
        f"mount {kind or source} on {target}",
    )


@lru_cache(maxsize=1)
def can_seal() -> bool:
    """Whether the kernel changes a mount with all below it (since 5.12)."""
    try:
        syscall("mount_setattr", _MOUNT_SETATTR, -1, b"", 0, None, 0)
    except OSError as error:
        return error.errno != errno.ENOSYS
    return True


def seal(target: str, device: bool) -> None:
    """Make the mount at `target`, and all below it, read-only, without rights that files give, or devices."""
    attributes = struct.pack("=QQQQ", MS_RDONLY | MS_NOSUID | (0 if device else MS_NODEV), 0, 0, 0)
    values = (_CURRENT_FOLDER, target.encode(), _RECURSIVE, attributes, len(attributes))
    syscall(f"mount_setattr {target}", _MOUNT_SETATTR, *values)


def pivot_into(machine: str) -> None:
    """Make the current folder the root and let go of the old one."""
    syscall("pivot_root", _PIVOT_ROOT[machine], b".", b".")
    check(_libc.umount2(b".", ctypes.c_int(MNT_DETACH)), "umount2")
    os.chdir("/")


def prctl(option: int, *arguments: object) -> int:
    """prctl(2)."""
    values = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    values += [ctypes.c_ulong(0)] * (4 - len(values))
    return check(_libc.prctl(ctypes.c_int(option), *values), f"prctl {option}")


def drop_capabilities(machine: str) -> None:
    """Give up every capability. With no_new_privs there is no way to get one back."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()
    syscall("capset", _CAPSET[machine], ctypes.byref(header), ctypes.byref(data))
