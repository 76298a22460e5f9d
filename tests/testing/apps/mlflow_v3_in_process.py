"""The program `mlflow_v3_client` with a workspace in its own process; prints also the statuses that were answered."""

from __future__ import annotations

import json
import os
import sys

import mlflow_v3_client

from tracelake.testing import MockWorkspace

if __name__ == "__main__":
    with MockWorkspace() as workspace, workspace.in_process() as host:
        os.environ.update(workspace.environment(host=host))
        seen = mlflow_v3_client.main()
        answers = [[each.request.method, each.request.path, each.status] for each in workspace.requests()]
    json.dump({"seen": seen, "answers": answers}, sys.stdout)
