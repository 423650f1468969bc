"""The objects of one bucket below one prefix: read, write, list, remove. The only module that speaks to a store.

`fmcache.remote.clients` says which store this is, and with whose credentials.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from fmcache.errors import StoreUnavailable
from fmcache.remote.clients import Client, NoCredentials, client

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_T = TypeVar("_T")
THREADS = 8
"""Requests that run concurrently."""

_NO_NAMES = {"", ".", ".."}
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_NO_RANGE = {"InvalidRange", "416"}
_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_MESSAGE = re.compile(r"<Message>\s*([^<\r\n]*)")
_STATUS = re.compile(r"status code: (\d{3}) ?([A-Za-z -]*)")
_IN_BULK = re.compile(r"request failed for key (?P<key>.*): (?P<message>.*) \(code: (?P<code>\w+)\)")
_NOT_HERE = "Received redirect without LOCATION"
_NOT_A_RANGE = "Received non-partial response"

_BUCKET = "check the name of the bucket, or create it with the tools of the store"
_RIGHTS = "ask the owner of the bucket for the rights to list, read, write and delete objects below it"
_REGION = "name the region of the bucket (AWS_REGION, or region in ~/.aws/config)"
_NEXT = {
    "NoSuchBucket": _BUCKET,
    "ContainerNotFound": _BUCKET,
    "AccessDenied": _RIGHTS,
    "AuthorizationPermissionMismatch": _RIGHTS,
    "InvalidAccessKeyId": "check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws/credentials)",
    "SignatureDoesNotMatch": "check the credentials (AWS_SECRET_ACCESS_KEY, AWS_PROFILE, ~/.aws/credentials)",
    "ExpiredToken": "log in again, then run the same command again: finished work is kept",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "NotImplemented": "the store lacks this request: use another store, or a folder on this machine",
    "403": _RIGHTS,
}
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run aws configure or aws sso login",
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to a file of credentials",
    "az": "set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or run az login and set AZURE_USE_AZURE_CLI=true",
}
_NEXT |= dict.fromkeys(("AuthenticationFailed", "AuthorizationFailure"), f"check the credentials: {_CREDENTIALS['az']}")
_ENDPOINT = {
    "s3": "AWS_ENDPOINT_URL",
    "gs": "GOOGLE_BASE_URL",
    "az": "AZURE_STORAGE_ACCOUNT_NAME (and AZURE_STORAGE_ENDPOINT)",
}


class Tag(NamedTuple):
    """What names one version of an object in a conditional request: its ETag, and in some stores a number."""

    etag: str
    version: str = ""


NO_TAG = Tag('"00000000000000000000000000000000"', "1")
"""A tag that no object has."""


class Found(NamedTuple):
    """An object: those of its bytes that were asked for, tag, size, metadata, time of writing by the store's clock."""

    data: bytes
    tag: Tag
    size: int
    metadata: Mapping[str, str]
    modified: datetime


class Listed(NamedTuple):
    """What a listing says about an object. `etag` has no quotes; at S3, of an object written at once, it is the MD5."""

    size: int
    etag: str


class Objects:
    """The objects of `bucket` whose keys begin with `prefix`; keys of all methods are relative to it. Thread-safe.

    Every method raises StoreUnavailable when the store refuses or cannot be reached.
    """

    def __init__(self, scheme: str, bucket: str, prefix: str, client: Client) -> None:
        self.scheme, self.bucket, self.prefix, self._client = scheme, bucket, prefix.strip("/"), client

    @property
    def host(self) -> str:
        """The name of the store, which differs between stores that may have buckets of the same name."""
        return self._client.host

    def url(self, key: str = "") -> str:
        """Return the URL of an object."""
        return f"{self.scheme}://{self.bucket}/{self._key(key)}"

    def read(self, key: str) -> Found | None:
        """Return an object; None when there is none."""
        return self._found(key, {})

    def facts(self, key: str) -> Found | None:
        """Return an object without its bytes; None when there is none."""
        return self._found(key, {"head": True})

    def read_end(self, key: str, size: int) -> Found | None:
        """Return an object with only its last bytes, `size` of them or fewer; None when there are none."""
        if self.scheme == "az":  # it has no ranges that count from the end
            facts = self.facts(key)
            first = max(0, facts.size - size) if facts else 0
            return self._found(key, {"range": (first, facts.size), "if_match": facts.tag.etag}) if facts else None
        return self._found(key, {"range": {"suffix": size}})

    def read_range(self, key: str, first: int, stop: int, tag: Tag) -> bytes | None:
        """Return bytes `first` to `stop` - 1 of an object with this tag; None when it is another, or is shorter."""
        found = self._found(key, {"range": (first, stop), "if_match": tag.etag})
        return found.data if found and len(found.data) == stop - first else None

    def _found(self, key: str, options: Any) -> Found | None:
        import obstore

        def ask() -> Found:
            answer = obstore.get(self._store, self._key(key), options=options)
            meta = answer.meta
            data = b"" if "head" in options else bytes(answer.bytes())
            # the fields of HTTP, such as Content-Type, are among them, with capitals
            said = {self._named(name): str(value) for name, value in answer.attributes.items() if name.islower()}
            tag = Tag(meta["e_tag"] or "", meta["version"] or "")
            return Found(data, tag, meta["size"], MappingProxyType(said), meta["last_modified"])

        with self._naming(key, "read"):
            return _unless_other(ask)

    def write(self, key: str, data: bytes, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write an object in one request: it appears whole or not at all."""
        import obstore

        with self._naming(key, "write"):
            said = {self._stored(name): value for name, value in metadata.items()}
            obstore.put(self._store, self._key(key), data, attributes=said, use_multipart=False)

    def create(self, key: str, data: bytes) -> Tag | None:
        """Write an object only if there is none; return its tag, or None when there is one."""
        return self._conditionally(key, data, "create")

    def replace(self, key: str, data: bytes, tag: Tag) -> Tag | None:
        """Write an object only if its tag is `tag`; return the new tag, or None."""
        return self._conditionally(key, data, {"e_tag": tag.etag} | ({"version": tag.version} if tag.version else {}))

    def _conditionally(self, key: str, data: bytes, mode: Any) -> Tag | None:
        import obstore

        def ask() -> Tag:
            answer = obstore.put(self._store, self._key(key), data, mode=mode, use_multipart=False)
            return Tag(answer["e_tag"] or "", answer["version"] or "")

        with self._naming(key, "write"):
            return _unless_other(ask)

    def below(self, folder: str) -> dict[str, Listed]:
        """Return all objects below a folder, by key; one request for each 1000 of them."""
        import obstore

        found = {}
        with self._naming(folder, "list"):
            for page in obstore.list(self._store, self._key(folder) or None):
                for one in page:
                    key = one["path"].removeprefix(f"{self.prefix}/") if self.prefix else one["path"]
                    found[key] = Listed(one["size"], (one["e_tag"] or "").strip('"'))
        return found

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders directly in a folder, sorted; objects deeper in it are not listed."""
        import obstore

        with self._naming(folder, "list"):
            found = obstore.list_with_delimiter(self._store, self._key(folder) or None)["common_prefixes"]
        return sorted({name.rpartition("/")[2] for name in found} - _NO_NAMES)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects; those that do not exist are no error."""
        import obstore

        names = [self._key(key) for key in keys]
        if not names:
            return
        with self._naming("", "remove from"):
            try:
                obstore.delete(self._store, names)
            except FileNotFoundError:  # S3 ignores missing objects; other stores name the first, and may stop there
                for name in names:
                    _unless_other(functools.partial(obstore.delete, self._store, name))

    @property
    def _store(self) -> ObjectStore:
        from obstore.exceptions import BaseError

        try:
            return self._client.store()
        except BaseError as reason:  # a file of credentials that does not exist, a key that is no key
            raise NoCredentials(_first_line(reason)) from None

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix and key else self.prefix or key

    def _stored(self, name: str) -> str:
        """Return the name of a field of metadata at the store: Azure allows no hyphens."""
        return name.replace("-", "_") if self.scheme == "az" else name

    def _named(self, stored: str) -> str:
        return stored.replace("_", "-") if self.scheme == "az" else stored

    @contextlib.contextmanager
    def _naming(self, key: str, doing: str) -> Iterator[None]:
        """Raise what obstore raises as StoreUnavailable, with the URL and the next step.

        The texts of obstore are not repeated: they hold URLs with their signatures.
        """
        from obstore.exceptions import BaseError, InvalidPathError, UnauthenticatedError

        url, again = self.url(key), "then run the same command again"
        try:
            yield
        except NoCredentials as reason:
            found, step = str(reason), _CREDENTIALS[self.scheme]
            raise StoreUnavailable(f"there are no credentials for {url}", found=found, next_step=step) from None
        except InvalidPathError as reason:
            problem, step = "the store has objects whose names are no paths", "remove them, or name another prefix"
            raise StoreUnavailable(f"{url}: {problem}", found=_first_line(reason), next_step=step) from None
        except (BaseError, OSError) as reason:
            if isinstance(reason, UnauthenticatedError) or "performing token request" in str(reason):
                problem, step = f"there are no valid credentials for {url}", _CREDENTIALS[self.scheme]
                raise StoreUnavailable(problem, found=_first_line(reason), next_step=step) from None
            code, message = _refusal(reason)
            if code:
                raise StoreUnavailable(
                    f"the store refused to {doing} {url}",
                    found=f"{code}: {message}".rstrip(": "),
                    next_step=_NEXT.get(code, f"check the credentials and {_ENDPOINT[self.scheme]}, {again}"),
                ) from None
            step = f"check the network, the credentials and {_ENDPOINT[self.scheme]}, {again}"
            raise StoreUnavailable(
                f"{url}: the store did not answer", found=_first_line(reason), next_step=step
            ) from None


def connect(bucket: str, prefix: str, scheme: str = "s3") -> Objects:
    """Return the objects of a bucket; no request is sent yet. Raises as `fmcache.remote.clients.client`."""
    return Objects(scheme, bucket, prefix, client(scheme, bucket, f"{scheme}://{bucket}/{prefix}"))


def _unless_other(ask: Callable[[], _T]) -> _T | None:
    """Return an answer; None when there is no object, no such bytes, or another version than a condition names."""
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    try:
        return ask()
    except (FileNotFoundError, AlreadyExistsError, PreconditionError) as reason:
        if _refusal(reason)[0] in _NO_BUCKET:
            raise
    except BaseError as reason:
        if _refusal(reason)[0] not in _NO_RANGE:
            raise
    return None


def _refusal(reason: Exception) -> tuple[str, str]:
    """Return code and message of a store's answer, as obstore's text repeats them; ("", "") when it gave none."""
    text = str(reason)
    if one := _IN_BULK.search(text):
        return one["code"], f"{one['key']}: {one['message']}"
    if _NOT_HERE in text:
        return "PermanentRedirect", "the bucket is in another region"
    if code := _CODE.search(text):
        message = _MESSAGE.search(text)
        return code[1], message[1].strip() if message else ""
    if status := _STATUS.search(text):
        return status[1], status[2].strip()
    if _NOT_A_RANGE in text:
        return "InvalidRange", "the object is empty"
    return "", ""


def _first_line(reason: Exception) -> str:
    """Return what obstore says in one line, without URLs, which may hold a signature."""
    line = str(reason).partition("\n")[0]
    return re.sub(r"(https?://[^/\s?]*)\S*", r"\1", line)[:300]
