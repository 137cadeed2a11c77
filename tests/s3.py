"""A real S3 API (moto's server) with faults on request: on loopback in this process, or `python s3.py ADDRESS PORT
FILE` with the faults that FILE names, {"share": 0.3, "delay": 0.1}."""

import json
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class Faults:
    """WSGI middleware: answers 503 to a share of all requests, and waits before each.

    Attributes:
        lost: so many of the next writes are done, but answered with 503.
    """

    def __init__(self, app: Any):
        self.app, self.share, self.delay, self.failed, self.lost = app, 0.0, 0.0, 0, 0
        self.random = random.Random(0)

    def __call__(self, environ, start_response):
        time.sleep(self.delay)
        if self.random.random() < self.share:
            self.failed += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status = ("503 Slow Down", "500 Internal Server Error")[self.failed % 2]
            start_response(status, [("Content-Length", "0")])
            return [b""]
        if self.lost and environ["REQUEST_METHOD"] == "PUT":
            self.lost -= 1
            b"".join(self.app(environ, lambda *ignored: None))
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        return self.app(environ, start_response)


class Api:
    """Where it listens, and its faults."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.faults = Faults(DomainDispatcherApplication(create_backend_app))
        self.server = make_server(address, port, self.faults, threaded=True)
        self.url = f"http://{address}:{self.server.server_port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def bucket(self, name: str) -> str:
        """Make a bucket; returns its address."""
        s3fs.S3FileSystem(key="test", secret="test", endpoint_url=self.url).mkdir(name)
        return f"s3://{name}/folder"


@contextmanager
def serve() -> Iterator[Api]:
    """Run the server; while it runs, this process and its children reach it as S3."""
    s3fs.S3FileSystem.clear_instance_cache()  # those of this process ask the server before this one
    api = Api()
    before = {name: os.environ.get(name) for name in api.environment}
    os.environ |= api.environment
    thread = threading.Thread(target=api.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.server.shutdown()
        thread.join()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def main(address: str, port: str, file: str) -> None:
    api = Api(address, int(port))
    threading.Thread(target=api.server.serve_forever, daemon=True).start()
    while True:
        with suppress(ValueError):  # it is just being written
            wanted = json.loads(Path(file).read_text())
            api.faults.share, api.faults.delay = wanted["share"], wanted["delay"]
        time.sleep(0.2)


if __name__ == "__main__":
    main(*sys.argv[1:])
