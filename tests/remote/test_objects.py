"""The objects of a bucket: what is listed, and what a store that refuses or does not answer is reported as."""

import pytest

from fmcache.errors import SpecError, StoreUnavailable
from fmcache.remote import objects as module
from fmcache.remote.objects import connect


def test_keys_are_those_below_the_prefix_and_pages_of_a_listing_are_joined(server):
    ours, whole = connect("bucket", "a/b"), connect("bucket", "")
    names, server.page = [f"c/{i}" for i in range(5)], 2
    for name in names:
        server.client.put_object(Bucket="bucket", Key=f"a/b/{name}", Body=b"1")
    server.client.put_object(Bucket="bucket", Key="a/bc/d", Body=b"other")
    server.client.put_object(Bucket="bucket", Key="a/b/../../../outside", Body=b"no path of a copy")
    assert sorted(ours.below("")) == sorted(ours.below("c")) == sorted(names)
    assert len(whole.below("")) == 6
    assert (ours.folders(""), whole.folders("a"), whole.folders("")) == (["c"], ["b", "bc"], ["a"])
    assert ours.url("c/1") == "s3://bucket/a/b/c/1"
    ours.remove([*names, "never there"])
    assert list(whole.below("")) == ["a/bc/d"]


def test_a_written_object_is_read_back_with_its_metadata(server):
    ours = connect("bucket", "a")
    assert (ours.read("x"), ours.facts("x")) == (None, None)
    ours.write("x", b"bytes", {"fmcache-of": "1"})
    found, facts = ours.read("x"), ours.facts("x")
    assert (found.data, facts.data, facts.size, dict(facts.metadata)) == (b"bytes", b"", 5, {"fmcache-of": "1"})
    assert abs(found.age_s) < 10
    assert ours.create("x", b"other") is None
    assert ours.replace("x", b"new", '"0"') is None
    assert ours.replace("x", b"new", found.etag) == ours.facts("x").etag
    assert ours.read("x").data == b"new"


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        ("403 Forbidden", "AccessDenied", "rights"),
        ("403 Forbidden", "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        ("403 Forbidden", "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        ("400 Bad Request", "ExpiredToken", "log in again"),
        ("301 Moved Permanently", "PermanentRedirect", "AWS_REGION"),
        ("400 Bad Request", "AuthorizationHeaderMalformed", "AWS_REGION"),
        ("501 Not Implemented", "NotImplemented", "another store"),
    ],
)
def test_a_refusal_names_the_object_the_reason_and_the_next_step(server, status, code, says):
    server.fail = lambda method, _: None if method == "HEAD" else (status, code)
    ours = connect("bucket", "a")
    for ask in (ours.read, ours.below, lambda key: ours.write(key, b"")):
        with pytest.raises(StoreUnavailable, match=r"s3://bucket/a/x") as refused:
            ask("x")
        assert code in refused.value.found
        assert says in refused.value.next_step


def test_a_bucket_that_does_not_exist_is_named(server):
    with pytest.raises(StoreUnavailable, match="s3://absent/a") as refused:
        connect("absent", "a").below("")
    assert "NoSuchBucket" in refused.value.found
    assert "create it" in refused.value.next_step


def test_a_store_that_does_not_answer_and_missing_credentials_are_reported(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    with pytest.raises(StoreUnavailable, match="did not answer") as refused:
        connect("bucket", "a").read("x")
    assert "AWS_ENDPOINT_URL" in refused.value.next_step
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreUnavailable, match="no credentials") as refused:
        connect("bucket", "a").read("x")
    assert "AWS_PROFILE" in refused.value.next_step


def test_credentials_and_endpoint_of_a_profile_in_the_files_of_the_user_are_used(server, tmp_path, monkeypatch):
    (tmp_path / "config").write_text(f"[profile lab]\nregion = us-east-1\nendpoint_url = {server.url}\n")
    (tmp_path / "secrets").write_text("[lab]\naws_access_key_id = lab\naws_secret_access_key = lab\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "secrets"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    connect("bucket", "a").write("x", b"1")
    assert connect("bucket", "a").read("x").data == b"1"
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(SpecError, match="absent"):
        connect("bucket", "a")
