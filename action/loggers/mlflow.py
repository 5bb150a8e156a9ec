"""MLflow: the server or folder is MLFLOW_TRACKING_URI, the experiment MLFLOW_EXPERIMENT_NAME or "action"."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from action.loggers.base import Logger, Start

LONGEST = 500
"""Characters of a parameter's value that every server takes."""


class MLflow(Logger):
    """See ``Logger``."""

    package = "mlflow"

    def __init__(self, start: Start) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(), Metric
        if start.identity is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "action")
            known = self._client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self._client.create_experiment(name)
            run = self._client.create_run(experiment, run_name=start.folder.name)
            self.identity = str(run.info.run_id)
            params = [Param(_allowed(name), str(value)[:LONGEST]) for name, value in start.settings.items()]
            for first in range(0, len(params), 100):  # more are refused
                self._client.log_batch(self.identity, params=params[first : first + 100])
        else:
            self.identity = start.identity
            self._client.update_run(self.identity, status="RUNNING")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(_allowed(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.identity, metrics=metrics)

    def figure(self, step: int, name: str, path: Path) -> None:
        self._client.log_artifact(self.identity, str(path))

    def close(self) -> None:
        self._client.set_terminated(self.identity)


def _allowed(name: str) -> str:
    """A name without characters that MLflow refuses, as the names of classes may have."""
    return re.sub(r"[^\w\-. /]", "_", name)


LOGGER = MLflow
