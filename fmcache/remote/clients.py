"""Clients of stores: of which store a URL speaks, and with whose credentials. One function a scheme.

Requests are sent by obstore for all schemes. For ``s3`` it does not read ``~/.aws``: boto3 finds credentials, region
and endpoint there, as in every other program. For ``gs`` and ``az`` obstore reads the usual variables and files itself.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fmcache.errors import ExtraMissing, SpecError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

ATTEMPTS = 5
"""How often a request is sent before its failure is reported; obstore waits longer each time."""
RETRY_S = 180
"""No request is sent again after this time."""
REQUEST_S = 600
"""The longest time of one request, with its data."""
CONNECT_S = 10
CREDENTIALS_S = 300
"""Credentials are asked for again after this time. Those of boto3 are valid for longer."""

Environment = frozenset[tuple[str, str]]


class Client(NamedTuple):
    """A client of one bucket. `host` is the name of its store in paths; `store` makes it ready when it is first used.

    What `store` returns is made once: it finds credentials, which may take a request.
    """

    host: str
    store: Callable[[], ObjectStore]


def client(scheme: str, bucket: str, url: str) -> Client:
    """Return the client of a bucket (of ``az``: a container) for the current environment; no request is sent yet.

    `url` is for messages.

    Raises
    ------
    ExtraMissing
        When a library for this scheme is not installed.
    SpecError
        When a setting is missing or wrong, such as the name of a profile.
    """
    try:
        import obstore  # noqa: F401 - only whether it is there

        return _MADE[scheme](bucket, frozenset(os.environ.items()), ATTEMPTS)
    except ImportError as missing:
        step = f"pip install 'fmcache[{scheme}]'"
        raise ExtraMissing(f"{url}: {missing.name} is not installed", next_step=step) from None
    except SpecError as wrong:
        raise SpecError(f"{url}: {wrong.problem}", found=wrong.found, next_step=wrong.next_step) from None


class NoCredentials(Exception):
    """There are no credentials, or they cannot be read: raised by `Client.store`."""


@functools.lru_cache
def _s3(bucket: str, environment: Environment, attempts: int) -> Client:
    endpoint, region, authorities, session = _aws(environment)
    host = endpoint.partition("://")[2].strip("/")

    @functools.cache
    def store() -> ObjectStore:
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store

        try:
            if session.get_credentials() is None:
                raise NoCredentials
        except BotoCoreError as reason:
            raise NoCredentials(str(reason)) from None
        return S3Store(
            bucket,
            config={"aws_endpoint_url_s3": endpoint, "region": region},
            credential_provider=Boto3CredentialProvider(session, ttl=timedelta(seconds=CREDENTIALS_S)),
            **_limits(endpoint, attempts, authorities),
        )

    # names of buckets are unique on all hosts of AWS
    return Client("aws" if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else host, store)


@functools.lru_cache
def _aws(_environment: Environment) -> tuple[str, str, bytes, Any]:
    """Return endpoint, region, PEM of the certificate authorities (b"": those of the system) and session of boto3.

    Finding them takes longer than ten requests.
    """
    import boto3
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        core = botocore.session.get_session()
        session = boto3.session.Session(botocore_session=core)
        facts, bundle = session.client("s3").meta, core.get_config_variable("ca_bundle")
        authorities = Path(bundle).read_bytes() if bundle else b""
        return str(facts.endpoint_url), str(facts.region_name), authorities, session
    except (BotoCoreError, ValueError, OSError) as reason:
        step = "check AWS_PROFILE, AWS_ENDPOINT_URL, AWS_REGION, AWS_CA_BUNDLE and ~/.aws/config"
        raise SpecError("boto3 refuses its settings", found=str(reason), next_step=step) from None


@functools.lru_cache
def _gs(bucket: str, environment: Environment, attempts: int) -> Client:
    endpoint = dict(environment).get("GOOGLE_BASE_URL", "")

    @functools.cache
    def store() -> ObjectStore:
        from obstore.store import GCSStore

        return GCSStore(bucket, **_limits(endpoint, attempts))

    return Client(endpoint.partition("://")[2].strip("/") or "google", store)


@functools.lru_cache
def _az(container: str, environment: Environment, attempts: int) -> Client:
    said = dict(environment)
    endpoint = said.get("AZURE_STORAGE_ENDPOINT") or said.get("AZURE_ENDPOINT", "")
    if not (account := said.get("AZURE_STORAGE_ACCOUNT_NAME")):
        step = "set AZURE_STORAGE_ACCOUNT_NAME to the name of the storage account"
        raise SpecError("the storage account has no name", next_step=step)

    @functools.cache
    def store() -> ObjectStore:
        from obstore.store import AzureStore

        return AzureStore(container, **_limits(endpoint, attempts))

    host = endpoint.partition("://")[2].strip("/") or "azure"
    return Client(f"{account}.{host}", store)


def _limits(endpoint: str, attempts: int, authorities: bytes = b"") -> dict[str, Any]:
    """Return the options of all clients: bounded attempts and times; HTTP only where the endpoint says so."""
    return {
        "client_options": {
            "allow_http": endpoint.startswith("http://"),
            "timeout": timedelta(seconds=REQUEST_S),
            "connect_timeout": timedelta(seconds=CONNECT_S),
            **({"root_certificate": authorities} if authorities else {}),
        },
        "retry_config": {"max_retries": attempts - 1, "retry_timeout": timedelta(seconds=RETRY_S)},
    }


_MADE: dict[str, Callable[[str, Environment, int], Client]] = {"s3": _s3, "gs": _gs, "az": _az}
SCHEMES = tuple(_MADE)
"""Beginnings of URLs, which are also the names of the extras."""
