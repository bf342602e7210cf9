"""What a program may read: the standard library, the shared libraries it is linked to, and nothing else.

Whatever else is installed lies beside or below these folders (`site-packages` below the standard library, other
packages beside shared libraries), so the standard library is named entry by entry and shared libraries file by file.
"""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache

# Folders and files of the standard library that are no modules.
_PARTS = ("lib-dynload", "__pycache__")
_GENERATED = "_sysconfigdata_"
# They need a display, or are tests of the interpreter itself.
_UNUSED = ("_tkinter", "_test", "_ctypes_test", "xx")
LOADER_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")


@lru_cache(maxsize=1)
def folders() -> tuple[str, ...]:
    """Folders of the standard library, of the interpreter that a virtual environment stands for."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix, "installed_base": sys.base_prefix}
    paths = sysconfig.get_paths(vars=base)
    wanted = dict.fromkeys((paths["stdlib"], paths["platstdlib"], os.path.dirname(os.path.abspath(os.__file__))))
    return tuple(path for path in wanted if os.path.isdir(path))


def _standard(name: str) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names or name in _PARTS or name.startswith(_GENERATED)


def entries(standard: bool) -> list[str]:
    """What is directly in the folders of the standard library and belongs to it, or does not."""
    found = [entry for folder in folders() for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)]
    return [entry.path for entry in found if _standard(entry.name) == standard and os.path.exists(entry.path)]


def shared_libraries() -> dict[str, str]:
    """Shared libraries that modules of the standard library are linked to: each name of one, and the file it means.

    Raises:
        OSError: They could not be found out.
    """
    extensions = [
        entry.path
        for folder in folders()
        if os.path.isdir(os.path.join(folder, "lib-dynload"))
        for entry in os.scandir(os.path.join(folder, "lib-dynload"))
        if ".so" in entry.name and not entry.name.startswith(_UNUSED)
    ]
    files = _mapped(extensions)
    places = {os.path.dirname(file) for file in files} | {os.path.join(sys.base_prefix, "lib")}
    names = {file: file for file in files}
    for place in places.union(LOADER_FOLDERS):
        names |= {name: file for name, file in _links(place) if file in files}
    return names


def _links(place: str) -> Iterator[tuple[str, str]]:
    if os.path.isdir(place):
        for entry in os.scandir(place):
            if ".so" in entry.name:
                yield entry.path, os.path.realpath(entry.path)


def _mapped(extensions: list[str]) -> set[str]:
    """Files that the loader maps for `extensions`, found in a child that loads them."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            for path in extensions:
                try:
                    ctypes.CDLL(path)
                except OSError:
                    continue  # one of its libraries is not installed, so that nothing can import it
            with open("/proc/self/maps", encoding="utf-8") as maps:
                paths = {line.split(None, 5)[5].rstrip("\n") for line in maps if ".so" in line}
            with open(writing, "w", encoding="utf-8") as pipe:
                pipe.write("\n".join(path for path in paths if path.startswith("/")))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        found = {path for path in pipe.read().split("\n") if os.path.exists(path)}
    if os.waitpid(child, 0)[1] != 0:
        raise OSError("the shared libraries of Python cannot be found out")
    inside = tuple(folder + "/" for folder in folders())
    return {path for path in found if not path.startswith(inside)}
