"""URLs, and where their local copies are."""

from pathlib import Path

import pytest

from fmcache.errors import SpecError
from fmcache.remote.copies import home_of, home_of_cache, local_cache, local_work


def test_a_url_has_one_copy_however_it_is_written_and_a_folder_has_none(server, tmp_path):
    copy = local_work("s3://bucket/a/b")
    assert {local_work(Path("s3://bucket/a/b")), local_work("s3://bucket//a/b/"), local_work("S3://bucket/a/b")} == {
        copy
    }
    assert copy.relative_to(tmp_path / "copies").parts[1:] == ("bucket", "a", "b")
    assert home_of(copy).objects.url("x") == "s3://bucket/a/b/x"
    assert local_work(tmp_path / "work") == tmp_path / "work"
    assert home_of(tmp_path / "work") is None
    assert local_work("s3://bucket") != local_work("s3://bucket/a")


def test_stores_of_other_endpoints_have_other_copies(server, monkeypatch):
    here = local_work("s3://bucket/a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert local_work("s3://bucket/a") != here
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert "aws" in local_work("s3://bucket/a").parts


def test_the_url_of_a_cache_leads_to_its_copy(server):
    path = local_cache(Path("s3://bucket/a/cache/toy/x/c.zarr"))
    assert path == local_work("s3://bucket/a") / "cache" / "toy" / "x" / "c.zarr"
    assert home_of_cache(path).url(path) == "s3://bucket/a/cache/toy/x/c.zarr"
    assert local_cache(Path("work/cache/toy/x/c.zarr")) == Path("work/cache/toy/x/c.zarr")
    with pytest.raises(SpecError, match="not the URL of a cache"):
        local_cache(Path("s3://bucket/a"))


def test_copies_of_several_stores_lie_apart_and_a_copy_without_a_scheme_is_of_s3(server, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "ours")
    monkeypatch.setenv("GOOGLE_BASE_URL", server.url)  # the same host
    urls = [f"{scheme}://bucket/a" for scheme in ("s3", "gs", "az")]
    copies = [local_work(url) for url in urls]
    assert not [(one, other) for one in copies for other in copies if one != other and other.is_relative_to(one)]
    assert len(set(copies)) == 3
    assert [home_of(copy).objects.url("x") for copy in copies] == [f"{url}/x" for url in urls]
    (copies[0] / "home.json").write_text('{"bucket": "bucket", "prefix": "a"}')  # as older versions wrote it
    assert home_of(copies[0]).objects.url("x") == "s3://bucket/a/x"
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "theirs")
    assert local_work(urls[2]) != copies[2]
    monkeypatch.delenv("FMCACHE_COPIES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(copies[0] / "cache"))
    assert local_work(urls[0]).relative_to(copies[0] / "cache" / "fmcache" / "s3").parts[1:] == ("bucket", "a")


def test_a_url_in_azure_needs_the_name_of_the_account(monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(SpecError, match="az://container/a: the storage account has no name") as refused:
        local_work("az://container/a")
    assert "AZURE_STORAGE_ACCOUNT_NAME" in refused.value.next_step


@pytest.mark.parametrize("url", ["ftp://bucket/a", "http://host/bucket", "s3://", "s3://bucket/../other", "az://"])
def test_other_urls_are_refused(url):
    with pytest.raises(SpecError, match="is not the URL of a working folder") as refused:
        local_work(url)
    assert "s3://BUCKET/PREFIX" in refused.value.next_step
    with pytest.raises(SpecError) as refused:
        local_work(Path(url))  # a path of the command line has one slash
    assert refused.value.problem.startswith(f"{url} is not")
