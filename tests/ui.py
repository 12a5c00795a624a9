"""A running `mt5-crs ui`, and what its GraphQL says."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from tests.commands import read_until, started

ASSETS = {
    *("market_data", "market_data_parquet", "feast_registry", "technical_features", "feast_online_store"),
    *("training_set", "xgboost_model", "noise_floor", "model_evaluation", "champion_model", "live_predictions"),
}
RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
LAUNCH = """
mutation ($parameters: ExecutionParams!) {
  launchPipelineExecution(executionParams: $parameters) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""


class Ui:
    """A running `mt5-crs ui` and its state folder."""

    def __init__(self, home: Path, port: int, process: "subprocess.Popen[bytes]") -> None:
        self.home, self.process = home, process
        self.address = f"http://127.0.0.1:{port}"
        self.port = port

    def ask(self, query: str, **variables: object) -> Any:
        answer = requests.post(f"{self.address}/graphql", json={"query": query, "variables": variables}, timeout=60)
        content = answer.json()
        assert "errors" not in content, content
        return content["data"]

    def runs(self) -> dict[str, dict[str, Any]]:
        """Return the runs by id, but those that the hour brings, whenever a test runs."""
        found = self.ask("{ runsOrError { ... on Runs { results { runId jobName status tags { key value } } } } }")
        return {
            one["runId"]: one | {"tags": {tag["key"]: tag["value"] for tag in one["tags"]}}
            for one in found["runsOrError"]["results"]
            if one["jobName"] != "standing_checks"
        }

    def launch(self, job: str, first: str, last: str) -> str:
        """Start a run of a job on the months from `first` to `last` and return its id."""
        selector = {"repositoryName": "__repository__", "repositoryLocationName": "mt5_crs_pipeline"}
        tags = [{"key": RANGE[0], "value": first}, {"key": RANGE[1], "value": last}]
        parameters = {"selector": selector | {"pipelineName": job}, "executionMetadata": {"tags": tags}}
        launched = self.ask(LAUNCH, parameters=parameters | {"mode": "default"})["launchPipelineExecution"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def materialized(self, run_id: str) -> set[str]:
        """Return the assets that a run materialized."""
        asked = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { assets { key { path } } } } }"
        return {asset["key"]["path"][0] for asset in self.ask(asked, id=run_id)["runOrError"]["assets"]}

    def has_settled(self) -> bool:
        """Say whether all runs have succeeded, the one among them that the sensor asks for at its first look."""
        runs = self.runs().values()
        is_sensed = any(one["jobName"] == "market_data_backfill" for one in runs)
        return is_sensed and all(one["status"] == "SUCCESS" for one in runs)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def running_ui(home: Path, **settings: str) -> Iterator[Ui]:
    port = free_port()
    with started(home, "ui", "--port", port, **settings) as process:
        said = read_until(process.stdout, "Ctrl-C stops everything")
        assert f"http://127.0.0.1:{port} " in said
        yield Ui(home, port, process)
