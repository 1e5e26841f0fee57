"""Objects below an s3:// prefix: listed, read in ranges, sent whole or in parts."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_plus

import aiohttp
from botocore.exceptions import ClientError

from data_pipeline.errors import DataError, MissingError, RefusedError, StorageError, why
from data_pipeline.s3.errors import TROUBLE, NotTakenError, UploadGoneError
from data_pipeline.s3.requests import ABORT_LIMIT_S, client_of_s3, each, persist, run
from data_pipeline.storage import Entry, Moved

IN_FLIGHT = 16  # requests at once where there are many; above that, small reads gain little
PART_BYTES = 16 << 20  # what is larger is sent in parts; stores take 5 MiB to 5 GiB
PARTS_IN_FLIGHT = 4  # 64 MiB in memory for each file on its way
MAX_PARTS = 10_000  # of one object, by S3's rules
BULK_NAMES = 1000  # in one DeleteObjects, by S3's rules


class Objects:
    """The objects below one s3:// root; names are relative to it. Holds no connection, so it can be pickled.

    Every method raises MissingError, RefusedError or StorageError with the full address.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.bucket, _, folder = root.removeprefix("s3://").partition("/")
        self.prefix = f"{folder}/" if folder else ""

    def exists(self, name: str) -> bool:
        """Whether there is an object `name`; for the empty name, whether any lies below the root."""
        if not name:
            return bool(self._page("", MaxKeys=1).get("Contents"))
        try:
            self.info(name)
        except MissingError:
            return False
        return True

    def info(self, name: str) -> Entry:
        found = run(self._ask("head_object", name))
        return _entry(name, found["ContentLength"], found)

    def read(self, name: str, start: int | None, size: int | None) -> bytes:
        """What there is of the bytes asked for: fewer when the object ends before."""
        return run(self._read(name, start, size))

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        return run(each([functools.partial(self._read, name) for name in names], IN_FLIGHT))

    def read_spans(self, spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """What there is of each span (name, start, size)."""
        return run(each([functools.partial(self._read, *span) for span in spans], IN_FLIGHT))

    def names(self, folder: str) -> Iterator[str]:
        """Names of the objects directly in `folder`, relative to it."""
        below = f"{folder}/" if folder else ""
        for item in self._pages(below, Delimiter="/"):
            name = item["Key"][len(self.prefix + below) :]
            if name:  # else the folder's own marker, as consoles make them
                yield name

    def walk(self, folder: str) -> Iterator[Entry]:
        for item in self._pages(f"{folder}/" if folder else ""):
            if not item["Key"].endswith("/"):
                yield _entry(item["Key"][len(self.prefix) :], item["Size"], item)

    def download(self, name: str, file: BinaryIO, moved: Moved) -> None:
        """Write the object to `file`; what arrived before a broken connection is not asked for again."""
        run(self._download(name, file, moved))

    def put(self, name: str, data: bytes | Path, moved: Moved) -> None:
        """Make `data` (bytes, or a local file) the object `name`, whole or not at all.

        moved: told the bytes of each part of a file that is about to be sent, as others before it have been.
        Raises: OSError too, when the local file cannot be read.
        """
        if isinstance(data, bytes):
            body = data
            run(self._put(name, len(body), lambda at, size: body[at : at + size]))
            return
        handle = os.open(data, os.O_RDONLY)
        try:
            size = os.fstat(handle).st_size

            def read_at(at: int, size: int) -> bytes:
                moved(size)
                return os.pread(handle, size, at)

            run(self._put(name, size, read_at))
        finally:
            os.close(handle)

    def remove(self, name: str) -> None:
        run(self._remove(name))

    def remove_many(self, names: Sequence[str]) -> None:
        for first in range(0, len(names), BULK_NAMES):
            run(self._remove_bulk(names[first : first + BULK_NAMES]))

    def abort_uploads(self, folder: str) -> int:
        """End the uploads below `folder` that were never completed; returns how many there were."""
        return run(self._abort_uploads(f"{folder}/" if folder else ""))

    def _address(self, name: str) -> str:
        """For messages: in one line, whatever the name holds."""
        shown = "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in name)
        return f"{self.root}/{shown}" if name else self.root

    async def _ask(self, operation: str, name: str, **more: Any) -> Any:
        """The answer to one request about `name`."""

        async def attempt(client: Any) -> Any:
            return await getattr(client, operation)(Bucket=self.bucket, Key=self.prefix + name, **more)

        return await persist(self._address(name), attempt)

    def _page(self, below: str, **more: Any) -> dict[str, Any]:
        """One page of the listing of keys that start with the root and `below`."""

        async def attempt(client: Any) -> dict[str, Any]:
            found = await client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix + below, **more)
            return dict(found)

        return run(persist(self._address(below.rstrip("/")), attempt))

    def _pages(self, below: str, **more: Any) -> Iterator[dict[str, Any]]:
        """Objects of all pages, in the order of their keys' bytes."""
        while True:
            page = self._page(below, **more)
            yield from page.get("Contents", ())
            if not page.get("IsTruncated"):
                return
            more["ContinuationToken"] = page["NextContinuationToken"]

    async def _read(self, name: str, start: int | None = None, size: int | None = None) -> bytes:
        if size == 0 and start is not None:  # HTTP cannot ask for no bytes
            await self._ask("head_object", name)
            return b""
        end = "" if start is None or size is None else start + size - 1
        wanted = {} if start is None else {"Range": f"bytes={start}-{end}"}

        async def attempt(client: Any) -> bytes:
            try:
                found = await client.get_object(Bucket=self.bucket, Key=self.prefix + name, **wanted)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 416:  # it ends before `start`
                    return b""
                raise
            async with found["Body"] as body:
                data = bytes(await body.read())
            if start is not None and found["ResponseMetadata"]["HTTPStatusCode"] != 206:
                return data[start:][:size]  # some stores send the whole, whatever was asked for
            return data

        return await persist(self._address(name), attempt)

    async def _download(self, name: str, file: BinaryIO, moved: Moved) -> None:
        offset, total = 0, -1
        etag: str | None = None

        def start_over() -> None:
            nonlocal offset, etag
            offset, etag = 0, None
            file.seek(0)
            file.truncate()

        async def attempt(client: Any) -> None:
            nonlocal offset, total, etag
            if offset == total:  # all there; only the connection's end was not to be had
                return
            wanted = {"Range": f"bytes={offset}-"} if offset else {}
            found = await client.get_object(Bucket=self.bucket, Key=self.prefix + name, **wanted)
            async with found["Body"] as body:
                if etag not in (None, found.get("ETag")):
                    start_over()
                    raise aiohttp.ClientPayloadError("it was written anew while it was read")
                if offset and found["ResponseMetadata"]["HTTPStatusCode"] != 206:
                    start_over()
                etag, total = found.get("ETag"), offset + found["ContentLength"]
                while block := await body.read(1 << 20):
                    try:
                        file.write(block)
                    except OSError as error:
                        text = f"{self._address(name)} could not be copied here: {why(error)}"
                        raise DataError(text) from error
                    offset += len(block)
                    moved(len(block))
            if offset != total:
                raise aiohttp.ClientPayloadError(f"{offset} of {total} bytes came")

        await persist(self._address(name), attempt, lambda: offset)

    async def _put(self, name: str, size: int, read_at: Callable[[int, int], bytes]) -> None:
        if size > PART_BYTES:
            await self._put_parts(name, size, read_at)
        else:
            await self._send("put_object", name, read_at, 0, size)
        found = await self._ask("head_object", name)
        if found["ContentLength"] != size:
            await self._remove(name)
            raise StorageError(
                f"{self._address(name)}: the store kept {found['ContentLength']} of {size} bytes, which were "
                f"removed again; the same command sends them anew"
            )

    async def _put_parts(self, name: str, size: int, read_at: Callable[[int, int], bytes]) -> None:
        mark = {"upload": uuid.uuid4().hex}
        upload = (await self._ask("create_multipart_upload", name, Metadata=mark))["UploadId"]
        try:
            step = max(PART_BYTES, -(-size // MAX_PARTS))
            offsets = range(0, size, step)
            calls = [
                functools.partial(
                    self._send,
                    *("upload_part", name, read_at, offset, min(step, size - offset)),
                    UploadId=upload,
                    PartNumber=number,
                )
                for number, offset in enumerate(offsets, 1)
            ]
            sent = await each(calls, PARTS_IN_FLIGHT)
            parts = [{"PartNumber": number, "ETag": part["ETag"]} for number, part in enumerate(sent, 1)]
            try:
                whole = {"Parts": parts}
                await self._ask("complete_multipart_upload", name, UploadId=upload, MultipartUpload=whole)
            except UploadGoneError:
                # Completed already, if the answer to an earlier attempt was lost on its way.
                if (await self._ask("head_object", name)).get("Metadata") != mark:
                    raise
        except BaseException:  # else its parts would be paid for and not seen; the error goes on
            await self._abort(self.prefix + name, upload)
            raise

    async def _send(
        self,
        operation: str,
        name: str,
        read_at: Callable[[int, int], bytes],
        offset: int,
        size: int,
        **more: Any,
    ) -> Any:
        """One request with a body, which the store checks against its MD5."""
        body = await asyncio.to_thread(read_at, offset, size)
        if len(body) != size:
            raise DataError(
                f"the file for {self._address(name)} became shorter while it was sent; nothing was published"
            )
        digest = await asyncio.to_thread(hashlib.md5, body, usedforsecurity=False)
        more["ContentMD5"] = base64.b64encode(digest.digest()).decode()
        return await self._ask(operation, name, Body=body, **more)

    async def _abort(self, key: str, upload: str) -> None:
        """Tried once: it follows a failure, and `abort_uploads` finds what is left."""
        try:
            client = await client_of_s3()
            call = client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
            await asyncio.wait_for(call, ABORT_LIMIT_S)
        except TROUBLE:
            return

    async def _abort_uploads(self, below: str) -> int:
        count, more = 0, {"EncodingType": "url"}  # so that keys with control characters can be listed

        async def attempt(client: Any) -> Any:
            return await client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.prefix + below, **more)

        while True:
            try:
                page = await persist(self._address(below.rstrip("/")), attempt)
            except (NotTakenError, RefusedError):  # a store without such a listing, or not for this account
                return count
            plain = unquote_plus if page.get("EncodingType") == "url" else str
            found = [(plain(item["Key"]), item["UploadId"]) for item in page.get("Uploads", ())]
            await each([functools.partial(self._abort, *upload) for upload in found], IN_FLIGHT)
            count += len(found)
            if not page.get("IsTruncated"):
                return count
            more["KeyMarker"] = plain(page["NextKeyMarker"])
            more["UploadIdMarker"] = page["NextUploadIdMarker"]

    async def _remove(self, name: str) -> None:
        try:
            await self._ask("delete_object", name)
        except MissingError:
            return

    async def _remove_bulk(self, names: Sequence[str]) -> None:
        wanted = {"Objects": [{"Key": self.prefix + name} for name in names], "Quiet": True}

        async def attempt(client: Any) -> Any:
            return await client.delete_objects(Bucket=self.bucket, Delete=wanted)

        try:
            answer = await persist(self.root, attempt)
            left = [item["Key"][len(self.prefix) :] for item in answer.get("Errors", ())]
        except NotTakenError:  # not every store deletes in bulk, nor names that XML cannot hold
            left = list(names)
        await each([functools.partial(self._remove, name) for name in left], IN_FLIGHT)


def _entry(name: str, size_bytes: int, found: dict[str, Any]) -> Entry:
    since = found["LastModified"] - datetime(1970, 1, 1, tzinfo=UTC)
    return Entry(
        name, size_bytes, since // timedelta(microseconds=1) * 1000, found.get("ETag", "").strip('"')
    )
