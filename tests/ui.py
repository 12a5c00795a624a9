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
        found = self.ask("{ runsOrError { ... on Runs { results { runId jobName status tags { key value } } } } }")
        return {
            one["runId"]: one | {"tags": {tag["key"]: tag["value"] for tag in one["tags"]}}
            for one in found["runsOrError"]["results"]
        }


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
