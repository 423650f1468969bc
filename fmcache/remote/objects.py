"""The objects of one bucket below one prefix: read, write, list, remove. The only module that speaks to a store.

Credentials, profile, region and endpoint are those that boto3 finds: environment variables (``AWS_ACCESS_KEY_ID``,
``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, ...), the files in ``~/.aws``, the role of the machine.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from fmcache.errors import ExtraMissing, SpecError, StoreUnavailable

THREADS = 8
"""Requests that run concurrently."""
ATTEMPTS = 5
"""How often a request is sent before its failure is reported; boto3 waits longer each time."""
REMOVED_PER_REQUEST = 1000

_NO_NAMES = {"", ".", ".."}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_FAILED_CONDITION = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_NEXT = {
    "NoSuchBucket": "check the name of the bucket, or create it with the tools of the store",
    "AccessDenied": "ask the owner of the bucket for the rights to list, read, write and delete objects below it",
    "InvalidAccessKeyId": "check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws/credentials)",
    "SignatureDoesNotMatch": "check the credentials (AWS_SECRET_ACCESS_KEY, AWS_PROFILE, ~/.aws/credentials)",
    "ExpiredToken": "log in again, then run the same command again: finished work is kept",
    "PermanentRedirect": "name the region of the bucket (AWS_REGION, or region in ~/.aws/config)",
    "NotImplemented": "the store lacks this request of S3: use another store, or a folder on this machine",
}
_NEXT |= {"403": _NEXT["AccessDenied"], "301": _NEXT["PermanentRedirect"]}
_NEXT |= dict.fromkeys(
    ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"), _NEXT["PermanentRedirect"]
)
_CONNECTION = "check the network, the credentials and AWS_ENDPOINT_URL, then run the same command again"


class Found(NamedTuple):
    """An object: its bytes (empty when only facts were asked), ETag, metadata, and its age by the store's clock."""

    data: bytes
    etag: str
    size: int
    metadata: Mapping[str, str]
    age_s: float


class Listed(NamedTuple):
    """What a listing says about an object. `etag` has no quotes; of an object written at once it is often the MD5."""

    size: int
    etag: str


class Objects:
    """The objects of `bucket` whose keys begin with `prefix`; keys of all methods are relative to it. Thread-safe.

    Every method raises StoreUnavailable when the store refuses or cannot be reached.
    """

    def __init__(self, bucket: str, prefix: str, client: Any) -> None:
        self.bucket, self.prefix, self._client = bucket, prefix.strip("/"), client

    @property
    def host(self) -> str:
        """The host of the endpoint, with its port; 'aws' for all hosts of AWS, where names of buckets are unique."""
        host = str(self._client.meta.endpoint_url).partition("://")[2].strip("/")
        return "aws" if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else host

    def url(self, key: str = "") -> str:
        """Return the URL of an object."""
        return f"s3://{self.bucket}/{self._key(key)}"

    def read(self, key: str) -> Found | None:
        """Return an object; None when there is none."""
        return self._found(key, "get_object", lambda answer: answer["Body"].read())

    def facts(self, key: str) -> Found | None:
        """Return an object without its bytes; None when there is none."""
        return self._found(key, "head_object", lambda _: b"")

    def _found(self, key: str, method: str, data_of: Callable[[Any], bytes]) -> Found | None:
        with self._naming(key, "read"):
            answer = self._unless(_MISSING, method, Bucket=self.bucket, Key=self._key(key))
            if answer is None:
                return None
            now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
            age = (now - answer["LastModified"]).total_seconds()
            data = data_of(answer)
            return Found(data, answer["ETag"], answer["ContentLength"], MappingProxyType(answer["Metadata"]), age)

    def write(self, key: str, data: bytes, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write an object in one request: it appears whole or not at all."""
        with self._naming(key, "write"):
            self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, Metadata=dict(metadata))

    def create(self, key: str, data: bytes) -> str | None:
        """Write an object only if there is none (``If-None-Match: *``); return its ETag, or None when there is one."""
        return self._conditionally(key, data, IfNoneMatch="*")

    def replace(self, key: str, data: bytes, etag: str) -> str | None:
        """Write an object only if its ETag is `etag` (``If-Match``); return the new ETag, or None."""
        return self._conditionally(key, data, IfMatch=etag)

    def _conditionally(self, key: str, data: bytes, **condition: str) -> str | None:
        with self._naming(key, "write"):
            answer = self._unless(
                _FAILED_CONDITION | _MISSING, "put_object",
                Bucket=self.bucket, Key=self._key(key), Body=data, **condition,
            )  # fmt: skip
            return None if answer is None else str(answer["ETag"])

    def below(self, folder: str) -> dict[str, Listed]:
        """Return all objects below a folder, by key; one request for each 1000 of them."""
        found = {}
        for page in self._pages(folder, Prefix=self._start(folder)):
            for one in page.get("Contents", ()):
                key = one["Key"].removeprefix(f"{self.prefix}/") if self.prefix else one["Key"]
                if not _NO_NAMES & set(key.split("/")):  # such a key is not ours, and is no path of a copy
                    found[key] = Listed(one["Size"], one["ETag"].strip('"'))
        return found

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders directly in a folder, sorted; objects deeper in it are not listed."""
        start = self._start(folder)
        pages = self._pages(folder, Prefix=start, Delimiter="/")
        found = {
            one["Prefix"].removeprefix(start).strip("/") for page in pages for one in page.get("CommonPrefixes", ())
        }
        return sorted(found - _NO_NAMES)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects; those that do not exist are no error."""
        names = [{"Key": self._key(key)} for key in keys]
        for first in range(0, len(names), REMOVED_PER_REQUEST):
            some = names[first : first + REMOVED_PER_REQUEST]
            with self._naming("", "remove from"):
                answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": some, "Quiet": True})
            for error in answer.get("Errors", ()):
                raise StoreUnavailable(
                    f"s3://{self.bucket}/{error.get('Key')}: the store refused to remove it",
                    found=f"{error.get('Code')}: {error.get('Message')}",
                    next_step=_NEXT.get(str(error.get("Code")), _CONNECTION),
                )

    def _pages(self, folder: str, **asked: str) -> Iterator[Any]:
        with self._naming(folder, "list"):
            yield from self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, **asked)

    def _start(self, folder: str) -> str:
        return f"{self._key(folder)}/" if self._key(folder) else ""

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix and key else self.prefix or key

    def _unless(self, codes: set[str], method: str, **arguments: Any) -> Any:
        """Return the answer to a request; None when the store answers with an error of one of these codes."""
        from botocore.exceptions import ClientError

        try:
            return getattr(self._client, method)(**arguments)
        except ClientError as refused:
            if refused.response["Error"]["Code"] in codes:
                return None
            raise

    @contextlib.contextmanager
    def _naming(self, key: str, doing: str) -> Iterator[None]:
        """Raise what boto3 raises as StoreUnavailable, with the URL and the next step."""
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
        from botocore.exceptions import HTTPClientError as Unanswered

        try:
            yield
        except ClientError as refused:
            error = refused.response["Error"]
            code = str(error["Code"])
            raise StoreUnavailable(
                f"the store refused to {doing} {self.url(key)}",
                found=f"{code}: {error.get('Message', '')}".rstrip(": "),
                next_step=_NEXT.get(code, _CONNECTION),
            ) from None
        except NoCredentialsError:
            raise StoreUnavailable(
                f"there are no credentials for {self.url(key)}",
                next_step="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run aws configure",
            ) from None
        except (BotoCoreError, Unanswered) as reason:
            raise StoreUnavailable(
                f"{self.url(key)}: the store did not answer", found=str(reason)[:300], next_step=_CONNECTION
            ) from None


@functools.lru_cache
def _client(_environment: frozenset[tuple[str, str]], attempts: int) -> Any:
    """Return a client for the current environment; making one takes longer than ten requests."""
    import boto3
    from botocore.config import Config

    settings = Config(max_pool_connections=2 * THREADS, retries={"mode": "standard", "total_max_attempts": attempts})
    return boto3.session.Session().client("s3", config=settings)


def connect(bucket: str, prefix: str) -> Objects:
    """Return the objects of a bucket; no request is sent yet.

    Raises
    ------
    ExtraMissing
        When boto3 is not installed.
    SpecError
        When a setting of boto3 is wrong, such as the name of a profile.
    """
    try:
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise ExtraMissing(
            f"s3://{bucket}/{prefix}: boto3 is not installed", next_step="pip install 'fmcache[s3]'"
        ) from None
    try:
        return Objects(bucket, prefix, _client(frozenset(os.environ.items()), ATTEMPTS))
    except (BotoCoreError, ValueError) as reason:
        step = "check AWS_PROFILE, AWS_ENDPOINT_URL, AWS_REGION and ~/.aws/config"
        raise SpecError(
            f"s3://{bucket}/{prefix}: boto3 refuses its settings", found=str(reason), next_step=step
        ) from None
