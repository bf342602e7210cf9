"""How a process gives up what it does not need: for the whole server once, and for each judgement.

Two independent ways to take away files: private namespaces (the process sees a file system with the standard library
alone, no network and no other process), and Landlock (it may not open other files). Either goes with seccomp (it may
not make the calls that would reach further, or leave something behind). All are used where the kernel allows them.
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

SCRATCH = "/scratch"
_HOST_ROOT_PLACE = ("/tmp", "/mnt", "/var")
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
    """Errors inside are failures of `layer`."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SetupFailure(layer, str(error)) from error


def enter_namespaces(libraries: Mapping[str, str]) -> int:
    """Leave the machine's files, network, processes and host name; returns a descriptor of /proc.

    The process itself stays where it is among the processes; its children will be alone.

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
    """Make a root of nothing but the standard library, shared libraries and two devices, all read-only."""
    devices = [path for path in _DEVICES if os.path.exists(path)]
    kept = (*library.folders(), *sorted(set(libraries.values())), *devices)
    sources = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in kept]
    # Other packages are installed below the standard library; something empty lies over whatever is not of it. A link
    # leads out of this root, or to something that is looked at here itself.
    others = [path for path in library.entries(standard=False) if not os.path.islink(path)]
    covered = {path: os.path.isdir(path) for path in others}
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    place = next(path for path in _HOST_ROOT_PLACE if os.path.isdir(path))
    kernel.mount("collm", place, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    for path, descriptor in sources:
        _bind(descriptor, place + path, path in devices)
        os.close(descriptor)
    for path, folder in covered.items():
        descriptor = os.open(_empty(place, folder), os.O_PATH | os.O_CLOEXEC)
        _bind(descriptor, place + path, False)
        os.close(descriptor)
    for name, file in libraries.items():
        if not os.path.lexists(place + name):
            os.makedirs(os.path.dirname(place + name), exist_ok=True)
            os.symlink(file, place + name)
    os.mkdir(place + SCRATCH)
    os.chdir(place)
    kernel.pivot_into(machine)
    read_only = kernel.MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("none", "/", None, read_only | kernel.MS_BIND)


def _empty(place: str, folder: bool) -> str:
    """An empty folder or file in `place`."""
    path = f"{place}/.empty-{'folder' if folder else 'file'}"
    if folder:
        os.makedirs(path, exist_ok=True)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    return path


def _bind(descriptor: int, target: str, device: bool) -> None:
    """Show what `descriptor` stands for at `target`, read-only with everything that is mounted below it."""
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
    # An older kernel changes one mount at a time, so what is mounted below is left out.
    kernel.mount(source, target, None, kernel.MS_BIND)
    flags = os.fstatvfs(descriptor).f_flag & (kernel.MS_NOEXEC | kernel.MS_NODEV) | kernel.MS_NOSUID
    flags |= 0 if device else kernel.MS_RDONLY | kernel.MS_NODEV
    kernel.mount("none", target, None, kernel.MS_BIND | kernel.MS_REMOUNT | flags)


def private_scratch(size: int) -> None:
    """Give this process a scratch folder, and shared memory, that nobody else sees and that end with it."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    with _part("namespaces"):
        kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)
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
    """Landlock's rules for every process to come, as a descriptor.

    Args:
        version: Landlock's version in the kernel.
        libraries: Shared libraries that stay readable.
        private: Whether processes get a private scratch folder, which stays writable.
    """
    with _part("landlock"):
        devices = [path for path in _DEVICES if os.path.exists(path)]
        readable = [*library.entries(standard=True), *set(libraries.values()), *devices]
        # The rule of the folder holds for what is mounted there later.
        return landlock.ruleset(version, readable, [_NULL, SCRATCH] if private else [_NULL])


def confine(limits: Mapping[str, Any], layers: Mapping[str, int], user: int | None, rules: int | None) -> None:
    """Give up everything that code from elsewhere must not have; there is no way back.

    Args:
        limits: Fields of `Limits`.
        layers: Which of `LAYERS` are on.
        user: Whom to become; None to stay who this is.
        rules: Descriptor of `file_rules`, where Landlock is on; it is closed.

    Raises:
        SetupFailure: A layer that is to be on could not be switched on.
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
        # Changing the user clears this, so it comes last: whatever happens to the parent, nothing outlives it.
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
