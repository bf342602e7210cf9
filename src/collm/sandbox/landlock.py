"""Landlock: a process gives up access to all files but those under a few folders. Needs no privilege."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterable

from collm.sandbox import kernel

# The numbers are the same on every architecture.
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FIRST_RIGHTS = (1 << 13) - 1
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_READ = _READ_FILE | _READ_DIR
_OUT_OF_THE_WAY = 200


def version() -> int:
    """Version of Landlock that the kernel offers; 0 for none."""
    try:
        return kernel.syscall("landlock", _CREATE, None, 0, 1)
    except OSError:
        return 0


def ruleset(abi: int, readable: Iterable[str], writable: Iterable[str]) -> int:
    """Rules that leave files under `readable` to read, and files under `writable` to do with as one likes.

    Where the kernel's version `abi` knows of them, TCP, abstract sockets and signals to processes outside go as well.
    Returns a descriptor, high enough to be out of the way.
    """
    rights = _FIRST_RIGHTS | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    rights |= _IOCTL_DEVICE if abi >= 5 else 0
    attributes = struct.pack("=QQQ", rights, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    rules = kernel.syscall("landlock_create_ruleset", _CREATE, attributes[:size], size, 0)
    try:
        for paths, allowed in ((readable, _READ), (writable, rights & ~(_EXECUTE | _IOCTL_DEVICE))):
            for path in paths:
                folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    # Rights to folders cannot be given for a single file.
                    granted = allowed if os.path.isdir(path) else allowed & (_READ_FILE | _WRITE_FILE | _TRUNCATE)
                    rule = ctypes.create_string_buffer(struct.pack("=Qi", granted, folder))
                    kernel.syscall("landlock_add_rule", _ADD, rules, 1, ctypes.byref(rule), 0)
                finally:
                    os.close(folder)
        return fcntl.fcntl(rules, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
    finally:
        os.close(rules)


def restrict(rules: int) -> None:
    """Put this process, and all it starts, under `rules`; cannot be undone. Needs no_new_privs."""
    kernel.syscall("landlock_restrict_self", _RESTRICT, rules, 0)
