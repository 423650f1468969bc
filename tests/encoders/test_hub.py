"""The hub's answers, given by a server on this machine and met by the real huggingface_hub in a process of its own."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
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
import json, sys, time, torch
from pathlib import Path
from fmcache.encoders.load import load_encoder
from fmcache.errors import FmcacheError
from fmcache.specs import EncoderChoice
answers, seconds = {}, {}
for key, (card, offline) in json.loads(sys.argv[1]).items():
    start = time.monotonic()
    try:
        lock = Path(sys.argv[2]) if sys.argv[2] else None
        encoder = load_encoder(EncoderChoice(card), torch.device("cpu"), offline=offline, lock=lock)
        answers[key] = ["Encoder", encoder.weights_sha256]
    except FmcacheError as error:
        answers[key] = [type(error).__name__, str(error)]
    seconds[key] = time.monotonic() - start
print(json.dumps([answers, seconds]))
"""


class Shelf:
    """What the server has: the file's bytes now, its commit, and every request for bytes as (path, first byte)."""

    def __init__(self, body):
        self.body, self.commit, self.gets, self.breaks = body, COMMIT, [], 0
        self.files = {}  # by name, where there are several

    def of(self, path):
        return self.files.get(path.rpartition("/")[2], self.body)


@pytest.fixture
def shelf(tiny_model):
    return Shelf(save(tiny_model().state_dict()))


@pytest.fixture
def hub(shelf):
    """A server that gives one file, someone/open, by branch and by commit, and refuses the rest; its address."""

    class Hub(BaseHTTPRequestHandler):
        def head(self):
            refusal = next((answer for start, answer in REFUSALS.items() if self.path.startswith(start)), None)
            if not refusal and self.path.split("/")[4] not in ("main", shelf.commit):
                refusal = REFUSALS["/someone/norevision/"]
            body = shelf.of(self.path)
            first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            status, headers = refusal or (
                206 if first else 200,
                {
                    "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
                    "X-Repo-Commit": shelf.commit,
                    "Content-Length": len(body) - first,
                    "Accept-Ranges": "bytes",
                },
            )
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            if refusal:
                self.send_header("Content-Length", "0")
            elif first:
                self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            return None if refusal else first

        def do_HEAD(self):
            self.head()

        def do_GET(self):
            first = self.head()
            if first is None:
                return
            shelf.gets.append((self.path, first))
            body = shelf.of(self.path)
            if shelf.breaks:
                shelf.breaks -= 1
                self.wfile.write(body[first : first + len(body) // 3])
                self.close_connection = True
                return
            self.wfile.write(body[first:])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def environment(tmp_path):
    """Settings under which huggingface_hub asks a server on this machine and keeps its files to this test."""

    def settings(endpoint):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        return kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}

    return settings


@pytest.fixture
def ask(tmp_path, write_card, environment):
    """Load encoders whose weights are in hub repositories, in a fresh process; return its answers by repository."""

    def run(endpoint, repositories, lock="", drop=(), file="model.safetensors", **changes):
        wanted = {}
        for key, offline in repositories.items():
            name = key.partition(" ")[0]
            weights = {"repo": f"someone/{name}", "file": file, "drop": list(drop)}
            text = write_card(weights=weights, **changes).read_text()
            card = tmp_path / f"{name}.yaml"
            card.write_text(text)
            wanted[key] = (str(card), offline)
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(wanted), str(lock)],
            env=environment(endpoint), capture_output=True, text=True,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert ran.stderr == ""  # no retries, no progress
        answers, run.seconds = json.loads(ran.stdout)
        return answers

    return run


def test_the_hub_is_asked_and_every_answer_has_its_own_words(hub, shelf, ask):
    names = {start.split("/")[2]: False for start in REFUSALS}
    gated = {"gated": True, "licence": "CC-BY-4.0", "licence_page": "https://example.org/licence"}
    answers = ask(hub, {"open offline": True, **names, "open": False, "open again": True}, **gated)

    assert answers["open"] == answers["open again"] == ["Encoder", hashlib.sha256(shelf.body).hexdigest()]

    words = {
        "gated": ("found: no login", "https://example.org/licence", "CC-BY-4.0", "hf auth login", "HF_TOKEN", "days"),
        "waiting": ("found: a login that has not been approved", "https://example.org/licence"),
        "nothing": ("no repository 'someone/nothing', or it is private",),
        "nofile": ("'someone/nofile' has no file 'model.safetensors'",),
        "norevision": ("'someone/norevision' has no revision",),
        "badtoken": ("refused your token",),
        "forbidden": ("answered with status 403",),
        "open offline": ("not on this machine, and the hub must not be asked", "--offline"),
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


@pytest.fixture
def mute():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["refuses", "never answers"])
def test_a_hub_that_cannot_be_reached_is_given_up_soon_and_in_one_message(ask, mute, kind):
    nobody = "http://127.0.0.1:9"  # the discard port: nothing listens
    kind_of_error, message = ask(mute if kind == "never answers" else nobody, {"open": False}, gated=True)["open"]
    assert ask.seconds["open"] < 9  # 5 s of waiting; the rest is the library's import on a busy machine
    assert kind_of_error == "HubUnreachable"
    for text in ("someone/open/model.safetensors", "hub cannot be reached", "check the network", "--weights FILE"):
        assert text in message
    assert "https://huggingface.co/someone/open" in message


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, shelf, ask, tiny_model):
    # larger than the pieces of 10 MB in which the library writes to disk
    shelf.body = save(tiny_model().state_dict() | {"more.x": torch.ones(9_000_000)})
    shelf.breaks = 1
    (answer,) = ask(hub, {"open": False}, drop=["more."]).values()
    if answer[0] != "Encoder":  # the library gave up: the same command resumes
        assert "was interrupted" in answer[1]
        (answer,) = ask(hub, {"open": False}, drop=["more."]).values()
    assert answer == ["Encoder", hashlib.sha256(shelf.body).hexdigest()]
    assert [first >= 10_000_000 for _, first in shelf.gets] == [False, True]


def test_weights_are_held_to_what_they_were_when_first_fetched(hub, shelf, ask, tmp_path, tiny_model):
    lock = tmp_path / "work" / "weights.lock.yaml"
    first = ask(hub, {"open": False}, lock=lock)["open"]
    held = yaml.safe_load(lock.read_text())["someone/open/model.safetensors"]
    assert held == {"revision": COMMIT, "sha256": hashlib.sha256(shelf.body).hexdigest()}
    # the publisher moves the branch on: this working folder stays with what it began with, other folders get the new
    shelf.body, shelf.commit = save(tiny_model(init_values=0.3).state_dict()), "f" * 40
    assert ask(hub, {"open": False}, lock=lock)["open"] == first
    # the same commit with other bytes is refused
    for file in (tmp_path / "home").rglob("*"):
        if file.is_file() and file.stat().st_size == len(shelf.body):
            file.write_bytes(shelf.body[:-4] + b"oops")
    kind, message = ask(hub, {"open": True}, lock=lock)["open"]
    assert kind == "WeightsMismatch"
    assert f"is not the file whose sha256 {lock} states" in message


def check(environment, hub, tmp_path, *arguments, **variables):
    command = [
        sys.executable,
        "-m",
        "fmcache",
        "encoders",
        "check",
        *map(str, arguments),
        "--work",
        str(tmp_path / "w"),
    ]
    # wide: the table of results is read below
    return subprocess.run(
        [*command, "--device", "cpu"],
        env=environment(hub) | {"COLUMNS": "200"} | variables,
        capture_output=True,
        text=True,
    )


def test_check_reports_access_file_hash_load_and_grid_of_each_encoder(hub, shelf, environment, write_card, tmp_path):
    cards = {}
    for name in ("open", "gated"):
        weights = {"repo": f"someone/{name}", "file": "model.safetensors", "megabytes": 1}
        cards[name] = tmp_path / f"{name}.yaml"
        cards[name].write_text(write_card(name=name, weights=weights, gated=name == "gated").read_text())
    asked = check(environment, hub, tmp_path, cards["open"])
    assert (asked.returncode, shelf.gets) == (0, [])
    assert "to fetch (1.0 MB)" in asked.stdout
    fetched = check(environment, hub, tmp_path, cards["open"], cards["gated"], "raw-pixels", "--fetch")
    assert fetched.returncode == 1
    row, refused, pixels = (
        next(line for line in fetched.stdout.splitlines() if name in line and "│" in line)
        for name in ("open", "gated", "raw-pixels")
    )
    for text in ("open", "fetched", hashlib.sha256(shelf.body).hexdigest()[:12], "parameters", "48 x 32 x 32, finite"):
        assert text in row
    assert "FAILED" in refused
    assert "768 x 32 x 32, finite" in pixels
    assert "gated: the weights of 'gated' are gated" in fetched.stderr
    apart = check(environment, "http://127.0.0.1:9", tmp_path, cards["open"], cards["gated"])
    assert apart.returncode == 1
    here, missing = (next(line for line in apart.stdout.splitlines() if name in line and "│" in line) for name in cards)
    assert "not asked: no network" in here
    assert "48 x 32 x 32, finite" in here  # weights that are here are checked all the same
    assert "FAILED" in missing
    assert "\ngated: the hub cannot be reached" in apart.stderr
    assert "check the network" in apart.stderr
    assert "accept the licence at https://huggingface.co/someone/gated" in apart.stderr
    assert "Retry" not in apart.stderr
    offline = check(environment, hub, tmp_path, cards["open"], cards["gated"], HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    row = next(line for line in offline.stdout.splitlines() if "open" in line and "│" in line)
    for text in ("not asked", "here", "48 x 32 x 32, finite"):
        assert text in row
    assert "the hub must not be asked" in offline.stderr
    assert "accept the licence at https://huggingface.co/someone/gated" in offline.stderr
    assert "--weights FILE" in offline.stderr


def test_weights_in_several_files_are_fetched_by_their_index(hub, shelf, ask, tmp_path, tiny_model):
    state = tiny_model().state_dict()
    names = sorted(state)
    halves = {"m-1.safetensors": names[:9], "m-2.safetensors": names[9:]}
    shelf.files = {file: save({name: state[name] for name in part}) for file, part in halves.items()}
    listed = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    shelf.files["model.safetensors.index.json"] = json.dumps(listed).encode()
    lock = tmp_path / "work" / "weights.lock.yaml"
    changes = {"file": "model.safetensors.index.json", "lock": lock}
    first = ask(hub, {"open": False}, **changes)["open"]
    assert first[0] == "Encoder"
    assert ask(hub, {"open": True}, **changes)["open"] == first
