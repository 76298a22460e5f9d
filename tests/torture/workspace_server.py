"""The mocked workspace as a process that can be killed: `workspace_server.py PORT CONTROL-PORT DIRECTORY`.

What the control port is sent, `{"call": NAME, "arguments": {...}}`, is called on the workspace.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tracelake.testing import Faults, MockTable, MockWorkspace, Principal

workspace = MockWorkspace(sys.argv[3])


class Control(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        on: MockWorkspace | Faults = workspace
        name = asked["call"]
        if name.startswith("faults."):
            on, name = workspace.faults, name.removeprefix("faults.")
        found = getattr(on, name)(*asked["positional"], **asked["arguments"])
        if isinstance(found, MockTable):
            found = found.location
        if isinstance(found, Principal):
            found = found.name
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


workspace.serve(port=int(sys.argv[1]))
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Control).serve_forever()
