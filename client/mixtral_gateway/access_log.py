"""One JSON line for each request, without any text of prompts, answers or keys."""

import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson


@dataclass(slots=True)
class Record:
    """What is told of a request; None is left out. key: the API key's name. ttft_s: until the first chunk."""

    request_id: str
    method: str
    route: str
    client: str | None
    status: int = 0
    key: str | None = None
    stream: bool | None = None
    choices: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    ttft_s: float | None = None
    duration_s: float = 0.0
    error: str | None = None
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    def to_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in values.items()
            if value is not None
        }


class AccessLog:
    """stream: None writes nothing. A log that cannot be written does not harm a request."""

    def __init__(self, stream: TextIO | None = sys.stderr) -> None:
        self._stream = stream

    def write(self, record: Record) -> None:
        if self._stream is not None:
            try:
                self._stream.write(orjson.dumps(record.to_json()).decode() + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                self._stream = None
