"""Resource limits of a judgement, and the protections of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

MIB = 1 << 20
LAYERS = ("namespaces", "landlock", "seccomp")


@dataclass(frozen=True)
class Limits:
    """Resource limits of one judgement.

    Args:
        call_seconds: Wall time of loading the program, and of each call.
        cpu_seconds: CPU time of a process that runs the program.
        judgement_seconds: Wall time of the judgement.
        max_timeouts: Number of lost calls after which no further call is tried.
        memory_bytes: Address space of each process.
        message_bytes: Size of the arguments, and of the result, of one call.
        file_bytes: Size of one file in the temporary folder.
        temporary_bytes: Size of the temporary folder, which is in memory; it exists only with namespaces.
        open_files: Open descriptors of a process.
        threads: Threads and processes of the user that runs the program, if that is not root.
    """

    call_seconds: float = 3.0
    cpu_seconds: int = 10
    judgement_seconds: float = 20.0
    max_timeouts: int = 3
    memory_bytes: int = 512 * MIB
    message_bytes: int = 2 * MIB
    file_bytes: int = MIB
    temporary_bytes: int = 8 * MIB
    open_files: int = 64
    threads: int = 32


@dataclass(frozen=True)
class Protections:
    """The protections of the machine from a program.

    Args:
        session: The program runs in its own session, and its child processes are killed with it.
        limits: CPU time, wall time, memory, descriptors, file size and messages are limited; output is discarded.
        environment: Its environment is empty.
        network: It cannot open a connection.
        files: It can read only the standard library and the shared libraries of that.
        writes: It can write only to its own temporary folder, if any, which is deleted with it.
        processes: It cannot start processes, or they cannot outlive it.
        signals: It can neither signal nor trace outside processes.
        leftovers: It cannot leave shared memory, message queues or keys behind for a later program.
        user: It does not run as root.
        layers: The kernel features in use, of `LAYERS`.
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
        """The protections of a set of layers that were switched on without an error."""
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
        optional = ("user", "layers", "notes")
        return [field.name for field in fields(self) if field.name not in optional and not getattr(self, field.name)]

    def lacks(self, promised: Protections) -> list[str]:
        """Protections and layers that were promised and are missing."""
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
