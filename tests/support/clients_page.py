"""The examples of docs/clients.md, each with what it is said to print."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
_EXAMPLE = re.compile(r"```(sh|python)\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
OPENAI, GRPC, HTTP = "localhost:9000", "localhost:8001", "localhost:8000"


@dataclass(frozen=True)
class Example:
    """output: `...` in it stands for anything."""

    language: str
    code: str
    output: str

    def run(self, addresses: dict[str, str]) -> str:
        """What it prints when the page's addresses are replaced by these. Fails when it fails or warns."""
        code = self.code
        for shown, actual in addresses.items():
            code = code.replace(shown, actual)
        command = ["bash", "-ec", code] if self.language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
        assert (done.returncode, done.stderr) == (0, ""), f"{code}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def prints(self, output: str) -> bool:
        pattern = ".*".join(re.escape(part) for part in self.output.strip().split("..."))
        return re.fullmatch(pattern, output.strip(), re.DOTALL) is not None


def examples() -> list[Example]:
    text = PAGE.read_text()
    found = [Example(*match) for match in _EXAMPLE.findall(text)]
    assert len(found) == len(re.findall(r"```(?:sh|python)\n", text)), "an example without its output"
    return found
