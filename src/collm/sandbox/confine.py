"""How a process gives up what it does not need: for the whole server once, and for each judgement.

Two independent ways, each enough for the essential protections: private namespaces (the process sees a file system
with the libraries alone, no network and no other process), and Landlock with seccomp (it may not open other files, nor
make the calls that would reach further). Both are used where the kernel allows both.
"""

from __future__ import annotations

import os
import platform
import resource
import stat
import sys
import sysconfig
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from collm.sandbox import kernel, landlock, seccomp

SCRATCH = "/scratch"
_HOST_ROOT_PLACE = ("/tmp", "/mnt", "/var")
_FIRST_USER = 60_600
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_NULL = "/dev/null"
_DEVICES = (_NULL, "/dev/urandom")


@lru_cache(maxsize=1)
def readable_paths() -> list[str]:
    """Folders that a Python program needs: the standard library and the libraries it is linked to."""
    paths = sysconfig.get_paths()
    wanted = {paths["stdlib"], paths["platstdlib"], os.path.join(sys.base_prefix, "lib"), *_SYSTEM_LIBRARIES}
    wanted |= {path for path in sys.path if os.path.isdir(path)}
    present = sorted(os.path.abspath(path) for path in wanted if os.path.isdir(path))
    return [path for path in present if not any(path.startswith(other + "/") for other in present)]


def enter_namespaces() -> int:
    """Leave the machine's files, network, processes and host name; returns a descriptor of /proc.

    The process itself stays where it is among the processes; its children will be alone.
    """
    machine = platform.machine()
    kinds = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWPID
    user, group = os.geteuid(), os.getegid()
    try:
        if user != 0:
            raise PermissionError("only root has namespaces without a user namespace")
        kernel.unshare(kinds)
    except OSError:
        kernel.unshare(kernel.CLONE_NEWUSER | kinds)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    processes = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _private_root(machine)
    return processes


def _private_root(machine: str) -> None:
    """Make a root of nothing but libraries and two devices, all read-only."""
    sources = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in readable_paths()]
    sources += [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in _DEVICES if os.path.exists(path)]
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    place = next(path for path in _HOST_ROOT_PLACE if os.path.isdir(path))
    kernel.mount("collm", place, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    for path, descriptor in sources:
        target = place + path
        flags = os.fstatvfs(descriptor).f_flag & (kernel.MS_NOEXEC | kernel.MS_NODEV) | kernel.MS_NOSUID
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.makedirs(target, exist_ok=True)
            flags |= kernel.MS_RDONLY | kernel.MS_NODEV
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        kernel.mount(f"/proc/self/fd/{descriptor}", target, None, kernel.MS_BIND | kernel.MS_REC)
        kernel.mount("none", target, None, kernel.MS_BIND | kernel.MS_REMOUNT | flags)
        os.close(descriptor)
    os.mkdir(place + SCRATCH)
    os.chdir(place)
    kernel.pivot_into(machine)
    read_only = kernel.MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("none", "/", None, read_only | kernel.MS_BIND)


def private_scratch(size: int) -> None:
    """Give this process a scratch folder that nobody else sees and that ends with it."""
    kernel.unshare(kernel.CLONE_NEWNS)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("scratch", SCRATCH, "tmpfs", flags, f"size={size},nr_inodes=1000,mode=777")


def unprivileged_user() -> int:
    """A user to become: most likely another one for each server, so that processes are counted apart."""
    return _FIRST_USER + int.from_bytes(os.urandom(2), "big") % 500


def can_drop(user: int) -> bool:
    """Whether a process that becomes `user` can still read the standard library; tried in a child."""
    child = os.fork()
    if child == 0:
        try:
            _become(user)
            with open(os.path.join(sysconfig.get_paths()["stdlib"], "os.py"), "rb"):
                os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def confine(limits: Mapping[str, Any], layers: Mapping[str, int], user: int | None, scratch: str | None) -> None:
    """Give up everything that code from elsewhere must not have; there is no way back.

    Args:
        limits: Fields of `Limits`.
        layers: Which of `LAYERS` are on; for Landlock, its version.
        user: Whom to become; None to stay who this is.
        scratch: The only folder that stays writable; None for none.
    """
    machine = platform.machine()
    sizes = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_NPROC: limits["threads"],
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_AS: limits["memory_bytes"],
    }
    for kind, value in sizes.items():
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))
    if user is not None:
        _become(user)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if sys.platform == "linux":
        kernel.drop_capabilities(machine)
    # Changing the user clears this, so it comes last: whatever happens to the parent, nothing outlives it.
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
    if layers["landlock"]:
        writable = [path for path in (scratch, _NULL) if path and os.path.exists(path)]
        landlock.restrict(layers["landlock"], readable_paths(), writable)
    if layers["seccomp"]:
        seccomp.install(machine)
