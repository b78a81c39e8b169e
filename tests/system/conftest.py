"""The real Triton servers of the system tests: one as it starts by default, and one that trusts nobody."""

from guarded_server import guarded as guarded
from system_fixtures import engine_dir as engine_dir
from system_fixtures import server as server
