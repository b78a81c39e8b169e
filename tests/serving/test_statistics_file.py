"""The engine's statistics pass through a file beside the counters: whole, and cleaned up with them."""

import threading
from pathlib import Path

from mixtral_serving import statistics_file
from mixtral_serving.counters import Counters


def test_it_bears_the_prefix_of_its_server(tmp_path: Path) -> None:
    counters = Counters(tmp_path / "mixtral-1-2-counters")
    assert statistics_file.path_beside(counters) == tmp_path / "mixtral-1-2-statistics"
    counters.close()


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "statistics"
    statistics_file.write(path, {"number": 0, "text": ""})
    done = threading.Event()

    def keep_writing() -> None:
        for number in range(300):
            statistics_file.write(path, {"number": number, "text": "x" * 1000 * number})
        done.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    while not done.is_set():
        read = statistics_file.read(path)
        assert len(read["text"]) == 1000 * read["number"]
    writer.join()
    assert statistics_file.read(path)["number"] == 299
    assert [file.name for file in tmp_path.iterdir()] == ["statistics"]
    assert path.stat().st_mode & 0o777 == 0o600
