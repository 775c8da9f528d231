"""A page for tests, with small models, served in this process."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from sfumato.app import server
from sfumato.runs.train import train
from tests.training.tiny import LABELLED, tiny


def classes(run: Path) -> Path:
    """A run of digits by class, that can be guided, trained for a moment."""
    train(tiny(conditions={"label": {**LABELLED["label"], "drop": 0.1}}), run=run)
    return run


@contextlib.contextmanager
def served(place: Path, **options: Any) -> Iterator[str]:
    """The address of a page that offers ``place/runs``."""
    most = Image.MAX_IMAGE_PIXELS
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")
        demo = server.serve(runs=place / "runs", port=options.pop("port", 7960), block=False, **options)
        try:
            yield demo.local_url.rstrip("/")
        finally:
            demo.close()
            Image.MAX_IMAGE_PIXELS = most


class Client:
    """A browser without a screen: it presses buttons by the ids of components, over HTTP."""

    def __init__(self, url: str, session: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60.0)
        self.session = session
        self.config: dict[str, Any] = {}

    def open(self) -> Client:
        self.config = self.http.get("/config").raise_for_status().json()
        return self

    def _component(self, name: str) -> dict[str, Any]:
        return next(one for one in self.config["components"] if one["props"].get("elem_id") == name)

    def press(self, name: str, event: str = "click", index: int = -1, **values: Any) -> None:
        """Press a button, with values of components by id in place of those at the start."""
        target = [self._component(name)["id"], event]
        found = [one for one in self.config["dependencies"] if target in [list(t) for t in one["targets"]]]
        self.send(found[index], **values)

    def send(self, dependency: dict[str, Any], **values: Any) -> None:
        ids = {self._component(key.replace("_", "-"))["id"]: value for key, value in values.items()}
        usual = {one["id"]: one["props"].get("value") for one in self.config["components"]}
        data = [ids.get(one, usual.get(one)) for one in dependency["inputs"]]
        body = {"data": data, "fn_index": dependency["id"], "session_hash": self.session}
        self.http.post("/gradio_api/queue/join", json=body).raise_for_status()

    def events(self) -> Iterator[dict[str, Any]]:
        """What the server sends, until the event is done."""
        with self.http.stream("GET", f"/gradio_api/queue/data?session_hash={self.session}") as stream:
            for line in stream.iter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line.removeprefix("data:"))
                yield message
                if message["msg"] in ("process_completed", "close_stream"):
                    return

    def result(self) -> dict[str, Any]:
        """The last message of an event."""
        *_, last = self.events()
        return last


def generating(client: Client) -> dict[str, Any]:
    """The event that samples, which follows that of the seed."""
    outputs = client._component("generate-gallery")["id"]
    inputs = client._component("generate-model")["id"]
    found = (one for one in client.config["dependencies"] if outputs in one["outputs"] and inputs in one["inputs"])
    return next(found)


class Active:
    """Counts the jobs that run at once."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        from sfumato.app import jobs

        self.now = self.most = self.all = 0
        self.lock, run = threading.Lock(), jobs._run

        def counted(*arguments: Any) -> None:
            with self.lock:
                self.now += 1
                self.all += 1
                self.most = max(self.most, self.now)
            try:
                run(*arguments)
            finally:
                with self.lock:
                    self.now -= 1

        patch.setattr(jobs, "_run", counted)
