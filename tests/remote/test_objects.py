"""The objects of a bucket: what is listed, and what a store that refuses or does not answer is reported as."""

from datetime import UTC, datetime

import pytest

from fmcache.errors import SpecError, StoreUnavailable
from fmcache.remote import clients
from fmcache.remote import objects as module
from fmcache.remote.objects import NO_TAG, Objects, connect


def test_keys_are_those_below_the_prefix_and_pages_of_a_listing_are_joined(server):
    ours, whole = connect("bucket", "a/b"), connect("bucket", "")
    names, server.page = [f"c/{i}" for i in range(5)], 2
    for name in names:
        server.client.put_object(Bucket="bucket", Key=f"a/b/{name}", Body=b"1")
    server.client.put_object(Bucket="bucket", Key="a/bc/d", Body=b"other")
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
    assert abs((found.modified - datetime.now(UTC)).total_seconds()) < 10
    assert ours.create("x", b"other") is None
    assert ours.replace("x", b"new", NO_TAG) is None
    assert ours.replace("x", b"new", found.tag) == ours.facts("x").tag
    assert ours.read("x").data == b"new"


def test_objects_whose_names_lead_out_of_a_copy_are_refused_by_name(server):
    server.client.put_object(Bucket="bucket", Key="a/b/../../../outside", Body=b"no path of a copy")
    with pytest.raises(StoreUnavailable, match="names are no paths") as refused:
        connect("bucket", "a/b").below("")
    assert "a/b/../../../outside" in refused.value.found


def test_a_large_object_is_written_in_one_request(server):
    connect("bucket", "a").write("x", bytes(6 << 20))  # obstore would write more than 5 MiB in parts
    assert server.requests == [("PUT", "/bucket/a/x")]


def test_parts_of_an_object_are_those_of_one_version(server):
    ours = connect("bucket", "a")
    ours.write("x", b"0123456789")
    end = ours.read_end("x", 3)
    assert (end.data, end.size) == (b"789", 10)
    assert ours.read_end("x", 30).data == b"0123456789"
    assert ours.read_range("x", 2, 5, end.tag) == b"234"
    assert ours.read_range("x", 8, 12, end.tag) is ours.read_range("x", 20, 30, end.tag) is None
    ours.write("x", b"another")
    ours.write("empty", b"")
    assert ours.read_end("empty", 3) is None
    assert ours.read_range("x", 2, 5, end.tag) is ours.read_end("absent", 3) is None


@pytest.fixture
def in_memory(monkeypatch):
    """Objects in a store of obstore's in this process, as if a scheme other than s3 named it."""
    from obstore.store import MemoryStore

    store = MemoryStore()
    return lambda scheme: Objects(scheme, "bucket", "a", clients.Client("host", lambda: store))


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_other_stores_work_in_the_same_way(in_memory, scheme, monkeypatch):
    import obstore

    get = obstore.get

    def refusing(store, key, *, options):
        if scheme == "az" and "suffix" in (options.get("range") or ()):
            raise obstore.exceptions.NotSupportedError("Azure does not support suffix range requests")
        return get(store, key, options=options)

    monkeypatch.setattr(obstore, "get", refusing)
    ours = in_memory(scheme)
    ours.write("c/x", b"0123456789", {"fmcache-of": "1"})
    found = ours.read("c/x")
    assert (found.data, dict(found.metadata), ours.url("c/x")) == (
        b"0123456789", {"fmcache-of": "1"}, f"{scheme}://bucket/a/c/x",
    )  # fmt: skip
    assert (ours.read_end("c/x", 3).data, ours.read_end("c/none", 3)) == (b"789", None)
    assert ours.read_end("c/x", 30).data == found.data
    assert ours.read_range("c/x", 2, 5, found.tag) == b"234"
    assert ours.create("c/x", b"1") is None
    assert ours.replace("c/x", b"1", ours.facts("c/x").tag) == ours.facts("c/x").tag
    ours.write("c/y", b"")
    assert (sorted(ours.below("c")), ours.folders("")) == (["c/x", "c/y"], ["c"])


def test_a_store_that_refuses_to_remove_what_is_not_there_loses_nothing(in_memory, monkeypatch):
    ours, removed = in_memory("az"), []

    def delete(store, keys):  # as Azure: the first missing object ends the request
        for key in [keys] if isinstance(keys, str) else keys:
            if key == "a/none":
                raise FileNotFoundError("Bulk delete request failed for key a/none: no such blob. (code: 404)")
            removed.append(key)

    monkeypatch.setattr("obstore.delete", delete)
    ours.remove(["x", "none", "y"])
    assert set(removed) == {"a/x", "a/y"}


def test_azure_gets_names_of_metadata_that_it_allows(in_memory):
    import obstore

    ours = in_memory("az")
    ours.write("x", b"", {"fmcache-of": "1"})
    assert obstore.get(ours._store, "a/x").attributes["fmcache_of"] == "1"


def test_credentials_that_cannot_be_read_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "ours")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "no key")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    for scheme, named in (("az", "AZURE_STORAGE_ACCOUNT_KEY"), ("gs", "GOOGLE_APPLICATION_CREDENTIALS")):
        with pytest.raises(StoreUnavailable, match=f"no credentials for {scheme}://bucket/a/x") as refused:
            connect("bucket", "a", scheme).read("x")
        assert named in refused.value.next_step
        assert refused.value.found


def test_the_certificate_authorities_of_aws_ca_bundle_are_trusted(server, monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr("obstore.store.S3Store", lambda bucket, **options: asked.update(options))
    for endpoint in ("https://127.0.0.1", server.url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert connect("bucket", "a")._store is None
        assert "root_certificate" not in asked["client_options"]
        assert asked["client_options"]["allow_http"] == endpoint.startswith("http:")
    (tmp_path / "authorities.pem").write_bytes(b"PEM")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "authorities.pem"))
    assert connect("bucket", "a")._store is None
    assert asked["client_options"]["root_certificate"] == b"PEM"
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "absent.pem"))
    with pytest.raises(SpecError, match="boto3 refuses its settings") as refused:
        connect("bucket", "a")
    assert "AWS_CA_BUNDLE" in refused.value.next_step


def test_no_message_holds_a_signature(server, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "ours")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=secretsecret")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(clients, "ATTEMPTS", 1)
    for endpoint in ("http://127.0.0.1:9", server.url):  # nothing answers; it answers with an error
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", endpoint)
        server.fail = lambda *_: ("403 Forbidden", "AuthenticationFailed")
        with pytest.raises(StoreUnavailable, match="az://container/a/x") as refused:
            connect("container", "a", "az").read("x")
        assert "secretsecret" not in str(refused.value)
        assert "AZURE_STORAGE" in refused.value.next_step
    assert module._first_line(OSError("GET https://a.b/c?sig=secret failed\nand more")) == "GET https://a.b failed"


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
    monkeypatch.setattr(clients, "ATTEMPTS", 1)
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
