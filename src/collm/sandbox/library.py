"""The files that a program may read: the standard library and the shared libraries that it is linked to.

Other packages are installed beside or below these (`site-packages` is below the standard library), so the entries of
the standard library and the shared libraries are listed one by one.
"""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache

# Folders and files of the standard library that are not modules.
_PARTS = ("lib-dynload", "__pycache__")
_GENERATED = "_sysconfigdata_"
# Modules that need a display, or are tests of the interpreter itself.
_UNUSED = ("_tkinter", "_test", "_ctypes_test", "xx")
LOADER_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")


@lru_cache(maxsize=1)
def folders() -> tuple[str, ...]:
    """Folders of the standard library; in a virtual environment, those of its base interpreter."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix, "installed_base": sys.base_prefix}
    paths = sysconfig.get_paths(vars=base)
    wanted = dict.fromkeys((paths["stdlib"], paths["platstdlib"], os.path.dirname(os.path.abspath(os.__file__))))
    return tuple(path for path in wanted if os.path.isdir(path))


def _standard(name: str) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names or name in _PARTS or name.startswith(_GENERATED)


def entries(standard: bool) -> list[str]:
    """Entries of the standard library's folders that belong to it (`standard`), or those that do not."""
    every = [entry for folder in folders() for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)]
    return [entry.path for entry in every if _standard(entry.name) == standard and os.path.exists(entry.path)]


def shared_libraries() -> dict[str, str]:
    """Shared libraries that modules of the standard library are linked to: the file for each of their names.

    Raises:
        OSError: They could not be determined.
    """
    extensions = [
        entry.path
        for folder in folders()
        if os.path.isdir(os.path.join(folder, "lib-dynload"))
        for entry in os.scandir(os.path.join(folder, "lib-dynload"))
        if ".so" in entry.name and not entry.name.startswith(_UNUSED)
    ]
    files = _mapped(extensions)
    parents = {os.path.dirname(file) for file in files} | {os.path.join(sys.base_prefix, "lib")}
    names = {file: file for file in files}
    for folder in parents.union(LOADER_FOLDERS):
        names |= {name: file for name, file in _links(folder) if file in files}
    return names


def _links(folder: str) -> Iterator[tuple[str, str]]:
    if os.path.isdir(folder):
        for entry in os.scandir(folder):
            if ".so" in entry.name:
                yield entry.path, os.path.realpath(entry.path)


def _mapped(extensions: list[str]) -> set[str]:
    """Files that the loader maps for `extensions`, determined in a child process that loads them."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            for path in extensions:
                try:
                    ctypes.CDLL(path)
                except OSError:
                    continue  # one of its libraries is not installed, so no program can import it
            with open("/proc/self/maps", encoding="utf-8") as maps:
                paths = {line.split(None, 5)[5].rstrip("\n") for line in maps if ".so" in line}
            with open(writing, "w", encoding="utf-8") as pipe:
                pipe.write("\n".join(path for path in paths if path.startswith("/")))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        paths = {path for path in pipe.read().split("\n") if os.path.exists(path)}
    if os.waitpid(child, 0)[1] != 0:
        raise OSError("the shared libraries of Python cannot be determined")
    inside = tuple(folder + "/" for folder in folders())
    return {path for path in paths if not path.startswith(inside)}
