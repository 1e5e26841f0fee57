"""Requests to S3 through s3fs: one client for a process, and one place where a request is tried again.

Credentials, region and endpoint are botocore's to find (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, an
instance's role …); nothing of them is kept, printed or sent on with a pickle.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import s3fs
from botocore.exceptions import BotoCoreError
from botocore.handlers import add_expect_header

from data_pipeline.s3.errors import TROUBLE, may_pass, named, settings_error

# A dead store is reported within a minute: no attempt starts later than RETRY_FOR_S after the first, the last
# one takes READ_TIMEOUT_S, and the abort of an upload ABORT_LIMIT_S. A store that hangs gets three attempts.
CONNECT_TIMEOUT_S = 5  # a host that takes longer to accept a connection is down or behind a firewall
READ_TIMEOUT_S = 15  # between two bytes: stores send blanks while they put a large upload together
RETRY_FOR_S = 40.0  # longer than a store's restart; it starts anew whenever a download gets further
ABORT_LIMIT_S = 5.0  # it is tried once: a store that does not answer then is down
LONGEST_PAUSE_S = 5.0  # between two attempts, so that a store that is back is found soon
MAX_CONNECTIONS = 64  # of one process, whose threads share them

T = TypeVar("T")


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """One that ends when the other side takes no bytes: aiohttp's own timeout is for reading alone."""
    family, kind, protocol = address[:3]
    found = socket.socket(family, kind, protocol)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux only
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(READ_TIMEOUT_S * 1000))
    return found


@functools.cache
def filesystem(pid: int) -> Any:
    """One s3fs for this process, since no connection outlives a fork; reads the AWS settings at first use."""
    found = s3fs.S3FileSystem(
        use_listings_cache=False,  # other machines write there too
        skip_instance_cache=True,  # s3fs would keep one for each thread
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            # Attempts are made in `persist` alone: three layers of retries would multiply to many minutes.
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": MAX_CONNECTIONS,
            "connector_args": {"socket_factory": _socket},
            # botocore's newer default, a checksum in a trailer, is refused by many stores other than AWS.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    )
    found.retries = 1
    return found


async def client_of_s3() -> Any:
    """This process's aiobotocore client, connected anew where that is needed."""
    client = await filesystem(os.getpid()).set_session()
    # aiohttp waits for the store's "100 Continue" without a limit: a store that hangs there would hang us.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client


def run(work: Coroutine[Any, Any, T]) -> T:
    """Do `work` on s3fs's event loop; a caller that is interrupted takes it along."""
    future = asyncio.run_coroutine_threadsafe(work, filesystem(os.getpid()).loop)
    try:
        return future.result()
    except BaseException:  # also Ctrl-C, which the other thread does not see; the error goes on
        future.cancel()
        raise


async def persist(
    address: str, attempt: Callable[[Any], Awaitable[T]], progress: Callable[[], int] = lambda: 0
) -> T:
    """What `attempt(client)` returns, tried again for RETRY_FOR_S since it last made progress."""
    try:
        client = await client_of_s3()
    except (BotoCoreError, OSError, ValueError) as error:  # ValueError: an endpoint that is no address
        raise settings_error(error, address) from error
    began, reached, tries = time.monotonic(), 0, 0
    while True:
        try:
            return await attempt(client)
        except TROUBLE as error:
            tries += 1
            if progress() > reached:
                began, reached, tries = time.monotonic(), progress(), 1
            # Not from a seeded generator: workers that failed together should not come back together.
            pause = min(0.25 * 2**tries, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
            took_s = time.monotonic() - began
            if not may_pass(error) or took_s + pause > RETRY_FOR_S:
                raise named(error, address, tries, took_s) from error
        await asyncio.sleep(pause)


async def each(calls: Sequence[Callable[[], Awaitable[T]]], limit: int) -> list[T]:
    """Results of all calls, in order, `limit` of them at once; the first error ends the others."""
    gate = asyncio.Semaphore(limit)

    async def one(call: Callable[[], Awaitable[T]]) -> T:
        async with gate:
            return await call()

    tasks = [asyncio.ensure_future(one(call)) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:  # none is left running behind the caller's back; the error goes on
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
