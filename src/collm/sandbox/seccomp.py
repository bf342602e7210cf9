"""A seccomp filter that allows only the system calls that a computing Python program needs.

It is an allow list, so system calls that are unknown here or new in a later kernel are refused. Refused are in
particular: new processes (threads are allowed), running programs, sockets, signals, tracing, mounts, namespaces,
changes of owner or mode, shared memory, and asynchronous input that would signal another process.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from functools import lru_cache

from collm.sandbox import kernel

# name: number on x86_64, number on aarch64; None if the architecture lacks the call.
_CALLS: dict[str, tuple[int | None, int | None]] = {
    **{"read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "newfstatat": (262, 79)},
    **{"stat": (4, None), "lstat": (6, None), "lseek": (8, 62), "statx": (332, 291), "access": (21, None)},
    **{"faccessat": (269, 48), "faccessat2": (439, 439), "statfs": (137, 43), "fstatfs": (138, 44)},
    **{"pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66)},
    **{"open": (2, None), "openat": (257, 56), "creat": (85, None), "getdents": (78, None), "getdents64": (217, 61)},
    **{"mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35)},
    **{"rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "ftruncate": (77, 46)},
    **{"symlink": (88, None), "symlinkat": (266, 36), "link": (86, None), "linkat": (265, 37)},
    **{"readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50)},
    **{"flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83), "umask": (95, 166)},
    **{"pipe": (22, None), "pipe2": (293, 59), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24)},
    **{"select": (23, None), "pselect6": (270, 72), "poll": (7, None), "ppoll": (271, 73)},
    **{"mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216)},
    **{"madvise": (28, 233), "membarrier": (324, 283), "futex": (202, 98), "sched_yield": (24, 124)},
    **{"set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293), "arch_prctl": (158, None)},
    **{"set_tid_address": (218, 96), "restart_syscall": (219, 128), "exit": (60, 93), "exit_group": (231, 94)},
    **{"rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pause": (34, None)},
    **{"rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132)},
    **{"nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113)},
    **{"clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153)},
    **{"getitimer": (36, 102), "setitimer": (38, 103), "alarm": (37, None), "getrandom": (318, 278)},
    **{"getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174)},
    **{"geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148)},
    **{"getresgid": (120, 150), "getgroups": (115, 158), "getpgrp": (111, None), "getpgid": (121, 155)},
    **{"getsid": (124, 156), "uname": (63, 160), "sysinfo": (99, 179), "getrlimit": (97, 163)},
    **{"getrusage": (98, 165), "sched_getaffinity": (204, 123), "sched_getparam": (143, 121)},
    **{"sched_getscheduler": (145, 120), "getpriority": (140, 141)},
}
_CLONE, _CLONE3, _PRLIMIT64 = (56, 220), (435, 435), (302, 261)
_IOCTL, _FCNTL = (16, 29), (72, 25)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_CLONE_THREAD = 0x00010000
# TCGETS, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX; not those that make a descriptor send signals.
_IOCTLS = (0x5401, 0x541B, 0x5421, 0x5451, 0x5450)
# F_DUPFD to F_SETLKW, F_DUPFD_CLOEXEC, F_GETPIPE_SZ. Others could make a descriptor send signals to another process, or
# delay processes that open a file of the standard library (by a lease, if the program's user owns that file).
_FCNTLS = (*range(8), 1030, 1032)

_LOAD, _EQUAL, _BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_Instruction = tuple[int, int, int, int]


def supported(machine: str) -> bool:
    """Whether there is a filter for `machine` and the kernel supports filters."""
    if machine not in _ARCHITECTURES:
        return False
    action = ctypes.c_uint32(_ERRNO)
    number = {"x86_64": 317, "aarch64": 277}[machine]
    try:
        kernel.syscall("seccomp", number, 2, 0, ctypes.byref(action))  # SECCOMP_GET_ACTION_AVAIL
    except OSError:
        return False
    return True


def _return(value: int) -> _Instruction:
    return (_RETURN, 0, 0, value)


def _only(number: int, body: list[_Instruction]) -> list[_Instruction]:
    """Instructions that run `body`, which always returns, for the call `number` and otherwise fall through."""
    return [(_EQUAL, 0, len(body), number), *body]


def _allow_values(argument: int, values: tuple[int, ...], otherwise: int) -> list[_Instruction]:
    """Instructions that allow the call if the low 32 bits of an argument are one of `values`."""
    body: list[_Instruction] = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]
    for value in values:
        body += [(_EQUAL, 0, 1, value), _return(_ALLOW)]
    return [*body, _return(otherwise)]


@lru_cache(maxsize=1)
def program(machine: str) -> bytes:
    """The filter as a program for the classic Berkeley packet filter."""
    column, architecture = _ARCHITECTURES[machine]
    refuse = _ERRNO | errno.EPERM
    code: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        _return(refuse),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for numbers in _CALLS.values():
        if (number := numbers[column]) is not None:
            code += _only(number, [_return(_ALLOW)])
    thread = [(_LOAD, 0, 0, _ARGUMENTS), (_BITS, 0, 1, _CLONE_THREAD), _return(_ALLOW), _return(refuse)]
    code += _only(_CLONE[column], thread)
    # The C library tries clone3 first, whose flags a filter cannot inspect, and then falls back to clone.
    code += _only(_CLONE3[column], [_return(_ERRNO | errno.ENOSYS)])
    # Limits may be read but not set: the pointer to the new limit must be null.
    code += _only(
        _PRLIMIT64[column],
        [
            (_LOAD, 0, 0, _ARGUMENTS + 16),
            (_EQUAL, 0, 3, 0),
            (_LOAD, 0, 0, _ARGUMENTS + 20),
            (_EQUAL, 0, 1, 0),
            _return(_ALLOW),
            _return(refuse),
        ],
    )
    code += _only(_IOCTL[column], _allow_values(1, _IOCTLS, refuse))
    code += _only(_FCNTL[column], _allow_values(1, _FCNTLS, refuse))
    code.append(_return(refuse))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install(machine: str) -> None:
    """Apply the filter to this process and its future children; cannot be undone. Needs no_new_privs."""
    code = program(machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_char_p))
    kernel.prctl(kernel.PR_SET_SECCOMP, 2, ctypes.byref(header))
