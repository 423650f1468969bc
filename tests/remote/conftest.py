"""A real server that speaks S3 (moto's) on a free port of loopback; it lists requests and can misbehave."""

import threading

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


class Server:
    """`requests` lists (method, path) in order; `drop` names headers that never arrive at the store.

    `answers` lists (path, bytes that were asked for, number of bytes sent) of each answered GET, in order.
    `fail` says with which (status, code) a request (method, path) is refused; `page` is the length of a listing.
    """

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._app, self.requests, self.drop, self.fail = DomainDispatcherApplication(create_backend_app), [], (), None
        self.page, self.client, self.answers = 1000, None, []
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        if "list-type=2" in environ["QUERY_STRING"]:
            environ["QUERY_STRING"] += f"&max-keys={self.page}"
        for name in self.drop:
            environ.pop(name, None)
        if self.fail and (answer := self.fail(method, path)):
            status, code = answer
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>as the test asked</Message></Error>".encode()]
        asked = environ.get("HTTP_RANGE", "")
        body = self._app(environ, start_response)
        if method == "GET":
            body = list(body)
            self.answers.append((path, asked, sum(map(len, body))))
        return body

    def of(self, method, part=""):
        """Return the paths of the requests of a method that hold `part`."""
        return [path for said, path in self.requests if said == method and part in path]

    def clear(self):
        """Forget the requests and answers."""
        self.requests.clear()
        self.answers.clear()

    def close(self):
        self._server.shutdown()


@pytest.fixture(scope="session")
def running():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(running, tmp_path, monkeypatch):
    """The server with an empty bucket `bucket`; credentials and endpoint are those of the environment."""
    import boto3

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    settings = {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": running.url, "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "FMCACHE_COPIES": str(tmp_path / "copies"),
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    if not running.client:
        running.client = boto3.session.Session().client("s3", region_name="us-east-1")
    running.drop, running.fail, client = (), None, running.client
    client.create_bucket(Bucket="bucket")
    running.clear()
    yield running
    running.drop, running.fail, running.page = (), None, 1000
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket"):
        for one in page.get("Contents", ()):
            client.delete_object(Bucket="bucket", Key=one["Key"])
    client.delete_bucket(Bucket="bucket")
