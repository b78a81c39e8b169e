"""What a server says about itself."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """Readiness and, of a ready server, what its `engine_info` model tells.

    manifest: the engine directory's manifest (runtime, precision, model dimensions). limits: what one request and one
    step may hold. stats: live counts of the engine. All three are empty while the server is not ready.
    """

    url: str
    ready: bool
    manifest: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_info(cls, url: str, info: dict[str, Any]) -> "ServerStatus":
        parts = {name: info.get(name) or {} for name in ("manifest", "limits", "stats")}
        return cls(url=url, ready=True, **parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "ready": self.ready,
            "manifest": self.manifest,
            "limits": self.limits,
            "stats": self.stats,
        }
