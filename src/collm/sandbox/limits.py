"""What a judgement may use, and what protects the machine from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

MIB = 1 << 20
LAYERS = ("namespaces", "landlock", "seccomp")


@dataclass(frozen=True)
class Limits:
    """What one judgement may use.

    Args:
        call_seconds: Wall time of loading the program, and of each call of it.
        cpu_seconds: CPU time of a process that runs the program.
        judgement_seconds: Wall time of the whole judgement.
        max_timeouts: Calls that may run out of time before the others are not tried any more.
        memory_bytes: Address space of each process.
        message_bytes: Size of the arguments, and of the result, of one call.
        file_bytes: Size of one file in the scratch folder.
        scratch_bytes: Size of the whole scratch folder, which is in memory; without namespaces there is none.
        open_files: Descriptors.
        threads: Threads and processes of the user that the program runs as, where that is not root.
    """

    call_seconds: float = 3.0
    cpu_seconds: int = 10
    judgement_seconds: float = 20.0
    max_timeouts: int = 3
    memory_bytes: int = 512 * MIB
    message_bytes: int = 2 * MIB
    file_bytes: int = MIB
    scratch_bytes: int = 8 * MIB
    open_files: int = 64
    threads: int = 32

    def plain(self) -> dict[str, Any]:
        """The limits as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Protections:
    """What is between a program and the machine.

    Args:
        session: The program leads a session of its own, outside the trainer's, and is killed with all it started.
        limits: CPU time, wall time, memory, descriptors, file size and messages are limited; output is discarded.
        environment: Its environment is empty.
        network: It cannot open a connection.
        files: It can read the standard library and the shared libraries of that, and nothing else.
        writes: It can write in a scratch folder of its own at most, which ends with it.
        processes: It cannot start processes, or they cannot outlive it.
        signals: It can neither signal nor trace processes outside.
        leftovers: It cannot leave shared memory, message queues or keys behind for a later program.
        user: It has no rights of root.
        layers: The kernel's means behind this, of `LAYERS`.
        notes: Why a layer is missing.
    """

    session: bool
    limits: bool
    environment: bool
    network: bool
    files: bool
    writes: bool
    processes: bool
    signals: bool
    leftovers: bool
    user: bool
    layers: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, layers: Mapping[str, bool], user: bool, notes: tuple[str, ...]) -> Protections:
        """What a set of layers gives; each of them was switched on without an error."""
        private, seccomp = layers["namespaces"], layers["seccomp"]
        files = private or layers["landlock"]
        return cls(
            session=True,
            limits=True,
            environment=True,
            network=private or seccomp,
            files=files,
            writes=files,
            processes=private or seccomp,
            signals=private or seccomp,
            leftovers=seccomp,
            user=user,
            layers=tuple(name for name in LAYERS if layers[name]),
            notes=notes,
        )

    @property
    def missing(self) -> list[str]:
        """Essential protections that are off."""
        wishes = ("user", "layers", "notes")
        return [field.name for field in fields(self) if field.name not in wishes and not getattr(self, field.name)]

    def lacks(self, promised: Protections) -> list[str]:
        """What was promised and is not here, layers among it."""
        names = [field.name for field in fields(self) if getattr(promised, field.name) is True]
        return [name for name in names if not getattr(self, name)] + [
            name for name in promised.layers if name not in self.layers
        ]

    def __str__(self) -> str:
        text = f"sandbox: {', '.join(self.layers) or 'no kernel layers'}"
        text += "" if self.user else "; runs with the rights of root, but without its capabilities"
        if self.missing:
            text += f"; NOT protected: {', '.join(self.missing)}"
        return "; ".join([text, *self.notes])
