"""A short soak with the real server: the checker sees all kinds of traffic, and nothing is lost, swapped or held."""

from pathlib import Path

import pytest
from run_soak import server_of, soak
from soak_traffic import KINDS

from mixtral_serving.server.installation import unsupported_platform

MINUTES = 0.1  # of traffic; too short to judge growth, which `make soak` does


def test_mixed_traffic_leaves_nothing_behind_and_loses_nothing(tmp_path: Path) -> None:
    if reason := unsupported_platform():
        pytest.skip(reason)
    with server_of(None, tmp_path) as (process, engine):
        report = soak(process, engine, MINUTES, seed=1)
    assert report["examples"] == []
    assert not report["wrong"]
    assert set(report["asked"]) == {*KINDS, "burst"}
    assert {"length", "stop", "cancelled", "refused", "unavailable"} <= set(report["ended"])
    assert report["tokens"] > 1000
    assert report["killed_clients"] > 0
    assert [failure for failure in report["failures"] if " gained " not in failure] == []
    tables = report["samples"][-1]["tables"]
    assert {"mixtral_streams_live", "mixtral_detokenizer_streams", "mixtral_detokenizer_stopping"} <= set(tables)
