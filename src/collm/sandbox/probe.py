"""A program that tries what the sandbox promises to prevent; run once before anything else."""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collm.sandbox import library
from collm.sandbox.case import Case
from collm.sandbox.limits import Protections

_PROGRAM = """\
import errno, os, resource, socket

def limits():
    kinds = (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
    return all(resource.getrlimit(kind)[1] != resource.RLIM_INFINITY for kind in kinds)

def session():
    return os.getsid(0) == os.getpid() and os.getpgid(0) == os.getpid()

def environment():
    return not os.environ

def network():
    for kind, address in ((socket.SOCK_STREAM, ("127.0.0.1", 9)), (socket.SOCK_DGRAM, ("192.0.2.1", 9))):
        try:
            with socket.socket(socket.AF_INET, kind) as connection:
                connection.settimeout(1)
                connection.connect(address)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES, errno.ENETUNREACH, errno.EAFNOSUPPORT):
                continue
        return False
    return True

def files():
    for path in PATHS:
        try:
            # An empty folder may lie over the one that is meant.
            found = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)
        except OSError:
            continue
        if found:
            return path
    return True

def writes():
    for folder in FOLDERS:
        try:
            path = os.path.join(folder, "collm-sandbox-probe")
            open(path, "w").close()
            os.unlink(path)
        except OSError:
            continue
        return path
    return True

def signals():
    try:
        os.kill(TRAINER, 0)
    except OSError:
        return True
    return False

def probe(name):
    return globals()[name]()
"""
_NAMES = ("limits", "session", "environment", "network", "files", "writes", "signals")


def _package_folders() -> list[Path]:
    found = {*site.getsitepackages(), site.getusersitepackages(), *library.entries(standard=False)}
    return [Path(path) for path in sorted(found) if os.path.isdir(path)]


def _some(folder: Path, most: int) -> list[Path]:
    """A few entries of a folder that hold something, none where this process may not look."""
    try:
        return [entry for entry in sorted(folder.iterdir()) if entry.is_dir() or entry.stat().st_size][:most]
    except OSError:
        return []


def probe(libraries: Sequence[str] = ()) -> Case:
    """The program, told what there is to find on this machine.

    Args:
        libraries: Shared libraries that stay readable, wherever they lie.
    """
    home = Path(os.path.expanduser("~"))
    needed = [
        *library.folders(),
        os.path.join(sys.base_prefix, "lib"),
        *libraries,
        *library.LOADER_FOLDERS,
        "/dev/null",
    ]
    here = Path.cwd()
    paths = [str(entry) for folder in {home, here} for entry in _some(folder, 50)]
    # The interpreter itself may lie in the user's home.
    private = [path for path in paths if not any(f"{kept}/".startswith(f"{path}/") for kept in needed)]
    private = [path for path in private if not any(f"{path}/".startswith(f"{kept}/") for kept in needed)]
    # Other packages may lie below the standard library, and this one among them.
    private += [path for folder in _package_folders() for path in (str(folder), *map(str, _some(folder, 5)))]
    private.append(__file__)
    folders = [str(home), str(here), "/tmp", "/var/tmp", "/dev/shm", "/"]
    facts = f"PATHS, FOLDERS, TRAINER = {private!r}, {folders!r}, {os.getpid()}\n"
    test = "".join(f"found = candidate({name!r})\nassert found is True, found\n" for name in _NAMES)
    return Case(facts + _PROGRAM, "probe", test)


def complaints(answer: Mapping[str, Any], protections: Protections) -> list[str]:
    """Protections that are said to be on, but which the program got around."""
    if "failure" in answer or not answer["loaded"]:
        return [f"the probe did not run ({answer.get('failure') or answer['error']})"]
    broken = {name: detail for name, (_, _, passed, detail) in zip(_NAMES, answer["units"], strict=True) if not passed}
    return [f"{name}: {detail}" for name, detail in broken.items() if getattr(protections, name)]
