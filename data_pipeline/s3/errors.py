"""What botocore, aiobotocore and aiohttp raise, as our named errors: one sentence each, without a secret."""

from __future__ import annotations

import re
from http.client import HTTPException

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from data_pipeline.errors import DataError, MissingError, RefusedError, StorageError

# OSError takes in TimeoutError, which is asyncio's too; HTTPException is urllib3's short read.
TROUBLE = (
    boto.BotoCoreError,
    boto.ClientError,
    aiohttp.ClientError,
    OSError,
    HTTPException,
    ResponseParserError,
)
# Of botocore's own errors these are the network's; the others are about settings.
_OF_THE_NETWORK = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
)
_PASSING_CODES = frozenset(
    [
        "BadDigest",  # the body was damaged on its way
        "IncompleteBody",
        "OperationAborted",
        "RequestTimeout",
        "RequestTimeoutException",
        "SlowDown",
        "Throttling",
        "XAmzContentSHA256Mismatch",
    ]
)
_REFUSING_CODES = frozenset(
    [
        "AuthorizationHeaderMalformed",
        "CredentialsNotSupported",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    ]
)
_USERINFO = re.compile(r"(?<=://)[^\s/'\"]+@")
_SETTINGS = (
    "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and for a store other than AWS "
    "AWS_ENDPOINT_URL"
)


class NotTakenError(StorageError):
    """A request that this store does not know, or not in this form."""


class UploadGoneError(StorageError):
    """A multipart upload that was completed or ended before."""


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, boto.ClientError):
        code, status, _ = _answer(error)
        return code in _PASSING_CODES or status == 429 or (status >= 500 and status != 501)
    return not isinstance(error, boto.BotoCoreError) or isinstance(error, _OF_THE_NETWORK)


def named(error: Exception, address: str, tries: int, took_s: float) -> DataError:
    """Our error for `error`, which came of the last of `tries` attempts to reach `address`."""
    if isinstance(error, boto.ParamValidationError):
        return MissingError(f"{address} cannot exist: {_text(error)}")
    if may_pass(error):
        return StorageError(
            f"{address}: the store does not answer as it should ({_text(error)}); tried {tries} times in "
            f"{took_s:.0f} s. Check AWS_ENDPOINT_URL and the network; the same command goes on from here"
        )
    if not isinstance(error, boto.ClientError):
        return settings_error(error, address)
    code, status, is_head = _answer(error)
    if code == "NoSuchUpload":
        return UploadGoneError(
            f"{address}: its upload was ended by another job; the same command sends it anew"
        )
    if code == "NoSuchBucket":
        bucket = "/".join(address.split("/")[:3])
        return MissingError(f"the bucket {bucket} does not exist: create it, or check AWS_ENDPOINT_URL")
    if status == 404:
        return MissingError(f"{address} does not exist: the store has no such object")
    # The answer to a HEAD has no body to say why, and 400 is how AWS says then that a token expired.
    if status in (401, 403) or code in _REFUSING_CODES or (status == 400 and is_head):
        return RefusedError(f"{address}: the store refused access ({_text(error)}); {_SETTINGS}")
    return NotTakenError(f"{address}: the store does not take this request ({_text(error)})")


def settings_error(error: Exception, address: str) -> RefusedError:
    """No usable credentials, profile or endpoint: nothing was sent."""
    return RefusedError(f"{address}: the store cannot be asked ({_text(error)}); {_SETTINGS}")


def _answer(error: boto.ClientError) -> tuple[str, int, bool]:
    """(code, HTTP status, whether it answers a HEAD)."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return code, status, error.operation_name.startswith("Head")


def _text(error: Exception) -> str:
    """The error in one line, without a password that an endpoint's address may hold."""
    if isinstance(error, boto.ClientError):
        said = error.response.get("Error", {})
        text = ": ".join(str(said[part]) for part in ("Code", "Message") if said.get(part))
    else:
        text = str(error) or type(error).__name__
    return _USERINFO.sub("***@", " ".join(text.split())).rstrip(".")
