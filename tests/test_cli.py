"""Errors of the operating system become a message with the failed action, its file, and the next step."""

import errno
import os
import stat
import subprocess
import sys

import pytest

from fmcache import cli

NOBODY = 65534


def refused(monkeypatch, capsys, action):
    """Run the command line with `action` in place of its commands; return what it prints."""
    monkeypatch.setattr(cli, "app", action)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_a_missing_file_is_reported_without_a_word_on_disk_space(monkeypatch, capsys, tmp_path):
    said = refused(monkeypatch, capsys, lambda: (tmp_path / "absent" / "x").read_bytes())
    assert f"refused to read {tmp_path}/absent/x: No such file or directory" in said
    assert "check the path" in said
    assert "space" not in said


def test_a_folder_that_cannot_be_made_is_reported(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    said = refused(monkeypatch, capsys, lambda: (tmp_path / "file" / "x").mkdir(parents=True))
    assert "refused to make the folder" in said
    assert "a folder in this path is a file" in said


def test_a_folder_in_place_of_a_file_is_reported(monkeypatch, capsys, tmp_path):
    assert "this is a folder" in refused(monkeypatch, capsys, lambda: tmp_path.read_text())


def test_a_folder_without_access_rights_is_reported(monkeypatch, capsys, tmp_path):
    tmp_path.chmod(stat.S_IRUSR)
    me = os.geteuid()
    if me == 0:  # root may write everywhere; the user `nobody` may not
        os.seteuid(NOBODY)
    try:
        said = refused(monkeypatch, capsys, lambda: (tmp_path / "x").write_text(""))
    finally:
        os.seteuid(me)
    assert "check your access rights" in said


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "free disk space"),
        (errno.EACCES, "your access rights"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "failed"),
    ],
)
def test_the_hint_fits_the_reason(monkeypatch, capsys, number, says):
    def action():
        raise OSError(number, os.strerror(number), "work/x.zarr", None, "work/y.zarr")

    said = refused(monkeypatch, capsys, action)
    assert f"work/x.zarr to work/y.zarr: {os.strerror(number)}" in said
    assert says in said


def test_an_error_without_a_hint_or_a_file_is_still_one_line(monkeypatch, capsys):
    def action():
        raise OSError("the wire broke")

    assert refused(monkeypatch, capsys, action) == "error: the system refused: the wire broke\n"


@pytest.mark.parametrize(("given", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_of_torch_sleep_while_they_wait_unless_the_user_wants_otherwise(given, found):
    script = "from fmcache import cli; cli.app = lambda: __import__('torch'); cli.main()"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, env=environment | given | {"OMP_DISPLAY_ENV": "true"}, capture_output=True, text=True, check=True
    )
    assert f"OMP_WAIT_POLICY = '{found}'" in done.stderr
