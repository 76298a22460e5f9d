"""A Databricks workspace on this machine, to test tracing with: docs/testing.md has how.

Importing this imports nothing that only the workspace needs; that happens when one is made.
"""

from tracelake.testing.state import Principal
from tracelake.testing.table import MockTable
from tracelake.testing.web.app import Exchange
from tracelake.testing.web.faults import Faults
from tracelake.testing.web.http import Request
from tracelake.testing.workspace import MockWorkspace

__all__ = ["Exchange", "Faults", "MockTable", "MockWorkspace", "Principal", "Request"]
