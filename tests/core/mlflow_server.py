"""Small MLflow server on 127.0.0.1 for tests: it answers MLflow's REST protocol, and records what is sent to it."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

API = "/api/2.0/mlflow/"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"


@dataclass
class TrackedRun:
    """One run on the server."""

    info: dict[str, Any]
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)

    def points(self, key: str) -> list[tuple[int, float]]:
        """Return the points (step, value) of a metric, in the order in which they arrived."""
        return [(metric["step"], metric["value"]) for metric in self.metrics if metric["key"] == key]


class Refusal(Exception):
    """Error answer of the server: status and MLflow's code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Recorder:
    """State of the server. `failing` makes it refuse every request."""

    def __init__(self) -> None:
        self.url = ""
        self.failing = False
        self.experiments: dict[str, str] = {}  # name -> id
        self.runs: dict[str, TrackedRun] = {}
        self.artifacts: dict[str, bytes] = {}  # path without the ids of experiment and run -> content
        self.requests: list[str] = []
        self._lock = threading.Lock()

    def answer(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a request of the REST protocol.

        Raises:
            Refusal: as MLflow's server.
        """
        calls: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "experiments/search": lambda body: {"experiments": []},
            "experiments/get-by-name": self._experiment,
            "experiments/create": self._create_experiment,
            "runs/create": self._create_run,
            "runs/get": lambda body: {"run": self._described(self._run(body))},
            "runs/update": self._update_run,
            "runs/log-batch": self._log_batch,
            "metrics/get-history": lambda body: {
                "metrics": [metric for metric in self._run(body).metrics if metric["key"] == body["metric_key"]]
            },
        }
        if path not in calls:
            raise Refusal(404, "ENDPOINT_NOT_FOUND", f"no endpoint {path}")
        with self._lock:
            return calls[path](body)

    def _run(self, body: Mapping[str, Any]) -> TrackedRun:
        if body["run_id"] not in self.runs:
            raise Refusal(404, "RESOURCE_DOES_NOT_EXIST", f"no run {body['run_id']}")
        return self.runs[body["run_id"]]

    @staticmethod
    def _described(run: TrackedRun) -> dict[str, Any]:
        pairs = {name: [{"key": k, "value": v} for k, v in getattr(run, name).items()] for name in ("params", "tags")}
        return {"info": run.info, "data": {"metrics": run.metrics, **pairs}}

    def _experiment(self, body: Mapping[str, Any]) -> dict[str, Any]:
        name = body["experiment_name"]
        if name not in self.experiments:
            raise Refusal(404, "RESOURCE_DOES_NOT_EXIST", f"no experiment {name}")
        return {
            "experiment": {"experiment_id": self.experiments[name], "name": name, "lifecycle_stage": "active"},
        }

    def _create_experiment(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {"experiment_id": self.experiments.setdefault(body["name"], str(len(self.experiments) + 1))}

    def _create_run(self, body: Mapping[str, Any]) -> dict[str, Any]:
        run_id = uuid.uuid4().hex  # the client caches the addresses of files by this id
        info = {
            "run_id": run_id,
            "run_uuid": run_id,
            "run_name": body["run_name"],
            "status": "RUNNING",
            "experiment_id": body["experiment_id"],
            "start_time": body["start_time"],
            "lifecycle_stage": "active",
            "artifact_uri": f"mlflow-artifacts:/{body['experiment_id']}/{run_id}/artifacts",
        }
        self.runs[run_id] = TrackedRun(info, tags={tag["key"]: tag["value"] for tag in body.get("tags", ())})
        return {"run": self._described(self.runs[run_id])}

    def _update_run(self, body: Mapping[str, Any]) -> dict[str, Any]:
        run = self._run(body)
        run.info["status"] = body.get("status", run.info["status"])
        run.statuses.append(run.info["status"])
        return {"run_info": run.info}

    def _log_batch(self, body: Mapping[str, Any]) -> dict[str, Any]:
        run = self._run(body)
        if len(body.get("metrics", ())) > 1000 or len(body.get("params", ())) > 100:
            raise Refusal(400, "INVALID_PARAMETER_VALUE", "too much in one request")
        for param in body.get("params", ()):
            if run.params.setdefault(param["key"], param["value"]) != param["value"]:
                raise Refusal(400, "INVALID_PARAMETER_VALUE", f"the parameter {param['key']} cannot change")
        run.tags |= {tag["key"]: tag["value"] for tag in body.get("tags", ())}
        run.metrics += [{**metric, "step": int(metric.get("step", 0))} for metric in body.get("metrics", ())]
        return {}


@contextmanager
def recording_server() -> Iterator[Recorder]:
    """Serve on a free port inside the block."""
    recorder = Recorder()

    class Handler(BaseHTTPRequestHandler):
        """One request."""

        def _handle(self) -> None:
            address = urlsplit(self.path)
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            recorder.requests.append(f"{self.command} {address.path}")
            try:
                if recorder.failing:
                    raise Refusal(400, "BAD_REQUEST", "out of order")
                if address.path.startswith(ARTIFACTS):
                    _, _, _, name = unquote(address.path.removeprefix(ARTIFACTS)).split("/", 3)
                    recorder.artifacts[name] = content
                    answer: dict[str, Any] = {}
                else:
                    query = {key: values[0] for key, values in parse_qs(address.query).items()}
                    answer = recorder.answer(address.path.removeprefix(API), json.loads(content or b"{}") | query)
                self._send(200, answer)
            except Refusal as refusal:
                self._send(refusal.status, {"error_code": refusal.code, "message": str(refusal)})

        do_GET = do_POST = do_PUT = do_PATCH = _handle

        def _send(self, status: int, answer: Mapping[str, Any]) -> None:
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    recorder.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
