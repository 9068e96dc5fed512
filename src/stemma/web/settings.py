"""How the atlas is served."""

import hashlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """How the atlas is served.

    Attributes:
        registry: Registry that is shown; the default one if None.
        host: Address that it listens on.
        port: Port that it listens on.
        token: What a visitor must know; None where only this machine can reach it.
        max_upload: Bytes that one upload may have.
        max_jobs: Questions that are answered at once, each in a process of its own.
        max_waiting: Questions that may wait, with uploads that are on their way; further ones are refused.
        max_memory: Bytes of memory that one question may take beyond the size of its files.
        max_seconds: Seconds after which a question is given up.
        patience: Seconds after which an upload of which nothing more comes is given up.
        kept: Answered questions that are kept.
    """

    registry: str | None = None
    host: str = "127.0.0.1"
    port: int = 7433
    token: str | None = None
    max_upload: int = 16 << 30
    max_jobs: int = 2
    max_waiting: int = 32
    max_memory: int = 8 << 30
    max_seconds: int = 3600
    patience: float = 60.0
    kept: int = 200

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def folder(self) -> Path:
        """Where uploads and answers lie: beside the registry, or in the user data folder for one on a server."""
        from stemma.registry.database import ServerAddress, registry_address

        place = registry_address(self.registry)
        if isinstance(place, ServerAddress):
            import platformdirs

            name = hashlib.sha256(place.where.encode()).hexdigest()[:16]
            return platformdirs.user_data_path("stemma") / f"{name}.atlas"
        return place.with_name(place.name + ".atlas")
