"""The hub's answers, given by a server on this machine and met by the real huggingface_hub in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from safetensors.torch import save

COMMIT = "0123456789abcdef0123456789abcdef01234567"

REFUSALS = {
    "/someone/gated/": (401, {"X-Error-Code": "GatedRepo"}),
    "/someone/waiting/": (403, {"X-Error-Code": "GatedRepo"}),
    "/someone/nothing/": (404, {"X-Error-Code": "RepoNotFound"}),
    "/someone/nofile/": (404, {"X-Error-Code": "EntryNotFound"}),
    "/someone/norevision/": (404, {"X-Error-Code": "RevisionNotFound"}),
    "/someone/badtoken/": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "/someone/forbidden/": (403, {}),
}

SCRIPT = """
import json, sys, torch
from fmcache.encoders.load import load_encoder
from fmcache.errors import FmcacheError
from fmcache.specs import EncoderChoice
answers = {}
for key, (card, offline) in json.loads(sys.argv[1]).items():
    try:
        encoder = load_encoder(EncoderChoice(card), torch.device("cpu"), offline=offline)
        answers[key] = ["Encoder", encoder.weights_sha256]
    except FmcacheError as error:
        answers[key] = [type(error).__name__, str(error)]
print(json.dumps(answers))
"""


@pytest.fixture
def hub(tiny_model):
    """A server that gives one file, someone/open, and refuses the rest; and that file's bytes."""
    body = save(tiny_model().state_dict())

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            refusal = next((answer for start, answer in REFUSALS.items() if self.path.startswith(start)), None)
            status, headers = refusal or (
                200,
                {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT, "Content-Length": len(body)},
            )
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            if refusal:
                self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            if self.path == "/someone/open/resolve/main/model.safetensors":
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", body
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def ask(tmp_path, write_card):
    """Load encoders whose weights are in hub repositories, in a fresh process; return its answers by repository."""

    def run(endpoint, repositories, home="home", **changes):
        wanted = {}
        for key, offline in repositories.items():
            name = key.partition(" ")[0]
            text = write_card(weights={"repo": f"someone/{name}", "file": "model.safetensors"}, **changes).read_text()
            card = tmp_path / f"{name}.yaml"
            card.write_text(text)
            wanted[key] = (str(card), offline)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / home), "NO_PROXY": "127.0.0.1"}
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(wanted)], env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    return run


def test_the_hub_is_asked_and_every_answer_has_its_own_words(hub, ask):
    endpoint, body = hub
    names = {start.split("/")[2]: False for start in REFUSALS}
    gated = {"gated": True, "licence": "CC-BY-4.0", "licence_page": "https://example.org/licence"}
    answers = ask(endpoint, {"open offline": True, **names, "open": False, "open again": True}, **gated)

    assert answers["open"] == answers["open again"] == ["Encoder", hashlib.sha256(body).hexdigest()]

    words = {
        "gated": ("found: no login", "https://example.org/licence", "CC-BY-4.0", "hf auth login", "HF_TOKEN", "days"),
        "waiting": ("found: a login that has not been approved", "https://example.org/licence"),
        "nothing": ("no repository 'someone/nothing', or it is private",),
        "nofile": ("'someone/nofile' has no file 'model.safetensors'",),
        "norevision": ("'someone/norevision' has no revision",),
        "badtoken": ("refused your token",),
        "forbidden": ("answered with status 403",),
        "open offline": ("not on this machine, and the hub may not be asked", "--offline"),
    }
    for key, texts in words.items():
        kind, message = answers[key]
        assert kind == "EncoderUnavailable", key
        assert "--weights FILE" in message, key
        for text in texts:
            assert text in message, key
    assert (
        len({answers[key][1].splitlines()[0].replace(key, "") for key in words if key != "waiting"}) == len(words) - 1
    )


@pytest.mark.slow  # huggingface_hub tries six times before it gives up
def test_a_hub_that_cannot_be_reached_is_told_from_one_that_refuses(ask, hub):
    endpoint, _ = hub
    nobody = endpoint.rpartition(":")[0] + ":9"  # the discard port: nothing listens
    kind, message = ask(nobody, {"open": False})["open"]
    assert kind == "EncoderUnavailable"
    assert "the hub cannot be reached" in message
    assert "check the network" in message
