"""Confinement of processes: of a server once, and of the processes of each judgement.

Two independent layers hide files: private namespaces (the process sees a file system with only the standard library, no
network and no other processes), and Landlock (it may not open other files). Either is combined with seccomp, which
refuses system calls that reach further or leave something behind. All are used if the kernel allows them.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import stat
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from collm.sandbox import kernel, landlock, library, seccomp

TEMPORARY = "/temporary"
_MOUNT_POINTS = ("/tmp", "/mnt", "/var")
_FIRST_USER = 60_600
_NULL = "/dev/null"
_DEVICES = (_NULL, "/dev/urandom")


class SetupFailure(Exception):
    """A protection could not be switched on; nothing may run without it."""

    def __init__(self, layer: str, reason: str):
        super().__init__(f"{layer}: {reason}")
        self.layer = layer
        self.reason = reason


@contextlib.contextmanager
def _part(layer: str) -> Iterator[None]:
    """Turn errors inside into a `SetupFailure` of `layer`."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SetupFailure(layer, str(error)) from error


def enter_namespaces(libraries: Mapping[str, str]) -> int:
    """Enter new namespaces for files, network, processes and host name; returns a descriptor of /proc.

    The process itself stays in its PID namespace; its children will be in the new one.

    Args:
        libraries: Shared libraries to keep; see `library.shared_libraries`.
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
    _private_root(machine, libraries)
    return processes


def _private_root(machine: str, libraries: Mapping[str, str]) -> None:
    """Make a root file system of the standard library, shared libraries and two devices, all read-only."""
    devices = [path for path in _DEVICES if os.path.exists(path)]
    kept = (*library.folders(), *sorted(set(libraries.values())), *devices)
    sources = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in kept]
    # Other packages may be installed below the standard library, so each such entry is covered by something empty.
    # Links need no cover: they point out of this root, or to an entry that is covered itself.
    others = [path for path in library.entries(standard=False) if not os.path.islink(path)]
    covered = {path: os.path.isdir(path) for path in others}
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    root = next(path for path in _MOUNT_POINTS if os.path.isdir(path))
    kernel.mount("collm", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    for path, descriptor in sources:
        _bind(descriptor, root + path, path in devices)
        os.close(descriptor)
    for path, folder in covered.items():
        descriptor = os.open(_empty(root, folder), os.O_PATH | os.O_CLOEXEC)
        _bind(descriptor, root + path, False)
        os.close(descriptor)
    for name, file in libraries.items():
        if not os.path.lexists(root + name):
            os.makedirs(os.path.dirname(root + name), exist_ok=True)
            os.symlink(file, root + name)
    os.mkdir(root + TEMPORARY)
    os.chdir(root)
    kernel.pivot_into(machine)
    read_only = kernel.MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("none", "/", None, read_only | kernel.MS_BIND)


def _empty(root: str, folder: bool) -> str:
    """Path of an empty folder or file in `root`."""
    path = f"{root}/.empty-{'folder' if folder else 'file'}"
    if folder:
        os.makedirs(path, exist_ok=True)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    return path


def _bind(descriptor: int, target: str, device: bool) -> None:
    """Bind-mount the file or folder of `descriptor` at `target`, read-only with all mounts below it."""
    if not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    source = f"/proc/self/fd/{descriptor}"
    if kernel.can_seal():
        kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)
        kernel.seal(target, device)
        return
    # An older kernel can make only one mount read-only at a time, so the mounts below are left out.
    kernel.mount(source, target, None, kernel.MS_BIND)
    flags = os.fstatvfs(descriptor).f_flag & (kernel.MS_NOEXEC | kernel.MS_NODEV) | kernel.MS_NOSUID
    flags |= 0 if device else kernel.MS_RDONLY | kernel.MS_NODEV
    kernel.mount("none", target, None, kernel.MS_BIND | kernel.MS_REMOUNT | flags)


def private_temporary(size: int) -> None:
    """Give this process a private temporary folder and private shared memory, which end with it."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    with _part("namespaces"):
        kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)
        kernel.mount("temporary", TEMPORARY, "tmpfs", flags, f"size={size},nr_inodes=1000,mode=777")


def unprivileged_user() -> int:
    """A random unprivileged user id, so that most servers differ and the kernel counts their processes separately."""
    return _FIRST_USER + int.from_bytes(os.urandom(2), "big") % 500


def can_drop(user: int) -> bool:
    """Whether a process that becomes `user` can still read the standard library; tried in a child."""
    child = os.fork()
    if child == 0:
        try:
            _become(user)
            with open(os.path.join(library.folders()[0], "os.py"), "rb"):
                os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def file_rules(version: int, libraries: Mapping[str, str], private: bool) -> int:
    """A descriptor of the Landlock rules for candidates and judges.

    Args:
        version: Landlock's version in the kernel.
        libraries: Shared libraries that stay readable.
        private: Whether processes get a private temporary folder, which stays writable.
    """
    with _part("landlock"):
        devices = [path for path in _DEVICES if os.path.exists(path)]
        readable = [*library.entries(standard=True), *set(libraries.values()), *devices]
        # The rule of the folder also covers a file system that is mounted there later.
        return landlock.ruleset(version, readable, [_NULL, TEMPORARY] if private else [_NULL])


def confine(limits: Mapping[str, Any], layers: Mapping[str, int], user: int | None, rules: int | None) -> None:
    """Drop all rights that untrusted code must not have; this cannot be undone.

    Args:
        limits: Fields of `Limits`.
        layers: Which of `LAYERS` are on.
        user: User id to switch to; None to keep the current one.
        rules: Descriptor from `file_rules` if Landlock is on; it is closed.

    Raises:
        SetupFailure: A required layer could not be switched on.
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
    with _part("limits"):
        for kind, value in sizes.items():
            _, most = resource.getrlimit(kind)
            value = value if most == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(kind, (value, value))
        if user is not None:
            _become(user)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        if sys.platform == "linux":
            kernel.drop_capabilities(machine)
        # Ends this process with its parent. It comes last because changing the user clears it.
        kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
    if layers["landlock"]:
        with _part("landlock"):
            if rules is None:
                raise OSError("there are no rules")
            landlock.restrict(rules)
            os.close(rules)
    if layers["seccomp"]:
        with _part("seccomp"):
            seccomp.install(machine)
