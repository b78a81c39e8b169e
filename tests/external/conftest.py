"""The server of the system tests, for the programs that look at it."""

from system_fixtures import engine_dir as engine_dir
from system_fixtures import server as server
