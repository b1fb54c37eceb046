"""Object storage and web servers, through fsspec: whole objects, read in parts, checked, asked again where it fails.

Addresses are those of a folder, "s3://bucket/imagenet". Credentials and end points come from where the libraries look
for them: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ~/.aws, FSSPEC_S3_ANON=true for public buckets (fsspec's configuration).
No message names a secret: of an address it says neither the user and password nor what follows a "?".
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, PipelineError, did_you_mean

EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http", "file": "http", "memory": "http"}
"""The extra of this package that brings what a kind of address needs."""
CONNECT_SECONDS, SILENCE_SECONDS = 10, 30
PAUSES_SECONDS = (0.5, 1, 2, 4, 8)
"""Between the tries of a request that failed for a reason that may pass."""
DOWNLOADS = 3
"""Times an object is fetched, and put, before its bytes are believed to be wrong."""
RANGE_BYTES = 2**24
UPLOAD_PART_BYTES = 50 * 2**20
"""Larger files are put in parts of so many bytes, as ETags tell."""
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_SQUEEZED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?:/([^/].*))?", re.DOTALL)
"""An address as a Path has it, which takes "//" for "/"."""
_NOT_A_BUCKET = re.compile(r"[^/]*@|(?!arn:)[^/]*:.*@", re.DOTALL)
_CREDENTIALS = {
    "http": "~/.netrc, or headers in fsspec's configuration (FSSPEC_HTTP)",
    "https": "~/.netrc, or headers in fsspec's configuration (FSSPEC_HTTPS)",
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
}
_SILENT = {"EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "ConnectionTimeoutError"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"}
_USAGE = {"ValueError", "TypeError", "ParamValidationError", "InvalidURL", "NotImplementedError"}
_HOPELESS = {errno.EINVAL, errno.EPERM, errno.ENOSYS, getattr(errno, "EREMCHG", errno.ENOENT), errno.ENOSPC}
"""Numbers that s3fs gives to answers such as InvalidBucketName and PermanentRedirect."""

Answer = TypeVar("Answer")
log = logging.getLogger("imagenet_pipeline")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Tell an address from a folder of this machine: "s3://bucket/set", also as a Path, which lacks a slash.

    One of a kind that there is not is an address, too, and `Storage` says so; but not where a folder "kind:" is here.
    """
    text = os.fspath(path)
    if _ADDRESS.fullmatch(text):
        return True
    squeezed = _SQUEEZED.fullmatch(text)
    if squeezed is None or (squeezed[2] is None and not isinstance(path, Path)):
        return False
    is_known = squeezed[1].lower() in EXTRAS
    return is_known or (squeezed[2] is not None and not os.path.exists(f"{squeezed[1]}:"))


def require_folder(path: str | os.PathLike[str], option: str) -> None:
    """Raise BadRecipe, naming the `option` that needs a folder of this machine, where `path` is an address."""
    if is_remote(path):
        raise BadRecipe(f"{option} is for a folder of this machine", where=f"--out {Storage(path)}")


def cache_folder() -> Path:
    """Folder for what can be made again: IMAGENET_PIPELINE_CACHE, else imagenet-pipeline in the user's own."""
    own = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("IMAGENET_PIPELINE_CACHE") or Path(own) / "imagenet-pipeline").absolute()


class Storage:
    """A folder of objects; `str()` of it is for people, without secrets.

    Its methods raise BadInput where the store is not there, refuses or keeps failing, BadRecipe for an address that is
    none or whose library is missing, each in one line.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        text = os.fspath(url)
        if squeezed := _SQUEEZED.fullmatch(text):
            text = f"{squeezed[1]}://{'/' if squeezed[1].lower() == 'file' else ''}{squeezed[2] or ''}"
        found = _ADDRESS.fullmatch(text)
        self.scheme = found[1].lower() if found else ""
        text = f"{self.scheme}://{found[2]}" if found else text
        self._base, mark, query = text.partition("?") if self.scheme in ("http", "https") else (text, "", "")
        kind, slashes, place = self._base.partition("://")
        self._base, self._query = kind + slashes + place.rstrip("/"), mark + query
        if self.scheme not in EXTRAS:
            advice = did_you_mean(self.scheme, EXTRAS, f"there are {', '.join(EXTRAS)}")
            raise BadRecipe("no such kind of storage", where=self, found=self.scheme or text, advice=advice)
        if self.scheme not in ("http", "https") and _NOT_A_BUCKET.match(found[2]):  # type: ignore[index]
            raise BadRecipe("an address in a bucket has no user and no password", where=f"{self.scheme}://",
                            expected=f"{self.scheme}://bucket/set", advice=self._whence_credentials)  # fmt: skip
        if self.scheme != "memory" and not found[2].strip("/"):  # type: ignore[index]
            raise BadRecipe("the address names no bucket or folder", where=self, expected=f"{self.scheme}://bucket/set")
        self._has_answered = False

    def __str__(self) -> str:
        scheme, mark, rest = self._base.partition("?")[0].partition("://")
        place, slash, path = rest.partition("/")
        return f"{scheme}{mark}{place.rpartition('@')[2]}{slash}{path}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url,)

    @property
    def _whence_credentials(self) -> str:
        return f"credentials come from {_CREDENTIALS.get(self.scheme, 'where its library looks for them')}"

    def require_no_secret(self) -> None:
        """Raise BadRecipe for an address with a user, a password or a query, where it would be kept in files."""
        if str(self) != self.url:
            what = "a run keeps its recipe, and would keep the user, the password or the query of this address"
            raise BadRecipe(what, where=self, advice=f"leave them out; {self._whence_credentials}")

    @property
    def url(self) -> str:
        """The address as it was given, secrets included."""
        return self._base + self._query

    def read(self, name: str, limit_bytes: int) -> bytes:
        """Read an object of at most `limit_bytes` whole. Raises BadInput for a larger one, or where there is none."""
        content = self._ask(name, lambda: self._store.cat_file(self._path(name), start=0, end=limit_bytes + 1))
        if len(content) > limit_bytes:
            raise BadInput("larger than it can be", where=self._shown(name), expected=f"{limit_bytes:,} bytes at most")
        return bytes(content)

    def size(self, name: str) -> int | None:
        """Size in bytes of an object; None where there is none, or where a web server does not say."""
        information = self._information(name)
        return None if information is None or information["size"] is None else int(information["size"])

    def exists(self, name: str) -> bool:
        """Look for an object."""
        return self._information(name) is not None

    def list(self, prefix: str = "") -> dict[str, int]:
        """Sizes in bytes of the objects whose names begin so, by name; those of folders within have a slash."""

        def found() -> Any:
            self._store.invalidate_cache()
            return self._store.find(self._path(""), detail=True)

        try:
            entries = self._ask("", found)
        except _Missing:
            return {}
        beginning = self._store._strip_protocol(self._path("")).rstrip("/") + "/"
        sizes = {path.removeprefix(beginning): int(entry["size"] or 0) for path, entry in entries.items()}
        return {name: size for name, size in sorted(sizes.items()) if name.startswith(prefix)}

    def download(self, name: str, file: Path, size_bytes: int, sha256: str) -> None:
        """Fetch an object into `file`, which appears whole and synced, with these bytes, or not at all.

        It grows beside it as FILE.part, with which a later call goes on; one call at a time for a file. Raises Damaged
        where the object is missing, has another size, or other bytes each time; OutOfRoom; and as the class.
        """
        information, part = self._information(name), file.with_name(f"{file.name}.part")
        expected, found = f"{size_bytes:,} bytes", "nothing" if information is None else information["size"]
        if found not in (size_bytes, None):
            raise Damaged("the object is missing or of another size", where=self._shown(name), expected=expected,
                          found=found if isinstance(found, str) else f"{found:,}")  # fmt: skip
        with files.explaining(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(DOWNLOADS):
            self._fetch(name, part, size_bytes)
            with files.explaining(part):
                digest = files.sha256_of(part)
                if digest == sha256:
                    files.adopt(part, file)
                    return
                part.unlink()
            log.warning("%s: not the bytes they should be, fetched again", self._shown(name))
        raise Damaged("other bytes than were put here", where=self._shown(name),
                      expected=f"SHA-256 {sha256}", found=digest)  # fmt: skip

    def upload(self, file: Path, name: str) -> None:
        """Put a file as an object whole, and see that it has arrived so. Raises Damaged where it never does."""
        for _ in range(DOWNLOADS):
            self._ask(name, lambda: self._put(file, name))
            if self._holds(name, file):
                return
            log.warning("%s: did not arrive as it is in %s, put again", self._shown(name), file)
        raise Damaged("the store does not hold what was put", where=self._shown(name))

    def remove(self, name: str) -> None:
        """Remove an object; one that is gone is no error."""
        if self.exists(name):
            self._ask(name, lambda: self._store.rm_file(self._path(name)))

    @cached_property
    def _store(self) -> Any:
        """The file system of fsspec. Raises BadRecipe where its package is missing."""
        package = f"pip install 'imagenet-pipeline[{EXTRAS[self.scheme]}]'"
        try:
            import fsspec

            store = fsspec.filesystem(self.scheme, skip_instance_cache=True, **_options(self.scheme))
        except ImportError as error:
            what = f"the package for {self.scheme}:// is not installed ({error.name or error})"
            raise BadRecipe(what, where=self, advice=package) from error
        if self.scheme == "s3":
            store.retries = 1  # those of this class alone
        return store

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}{self._query}" if name else self._base + self._query

    def _shown(self, name: str) -> str:
        return f"{self}/{name}" if name else str(self)

    def _information(self, name: str) -> dict[str, Any] | None:
        def asked() -> Any:
            self._store.invalidate_cache()
            return self._store.info(self._path(name))

        try:
            information: dict[str, Any] = self._ask(name, asked)
        except _Missing:
            return None
        return information if information["type"] == "file" else None

    def _fetch(self, name: str, part: Path, size_bytes: int) -> None:
        """Add to `part` what it lacks of an object of `size_bytes`, range by range."""
        with files.explaining(part), open(part, "ab") as stream:
            if stream.tell() > size_bytes:
                stream.truncate(0)
            while (done := stream.seek(0, os.SEEK_END)) < size_bytes:
                end = min(done + RANGE_BYTES, size_bytes)
                content = self._range(name, done, end, size_bytes)
                if len(content) == size_bytes:  # a web server that knows no ranges
                    stream.truncate(0)
                stream.write(content)
                stream.flush()

    def _range(self, name: str, start: int, end: int, size_bytes: int) -> bytes:
        """Bytes of an object; the whole of it from a server that answers so."""

        def asked() -> bytes:
            content: bytes = self._store.cat_file(self._path(name), start=start, end=end)
            if len(content) not in (end - start, size_bytes):
                raise ConnectionError(f"{len(content):,} of {end - start:,} bytes arrived")
            return content

        return self._ask(name, asked)

    def _put(self, file: Path, name: str) -> None:
        if self.scheme == "file":  # fsspec would write in place
            with files.regular_file(file) as (source, _):
                target = Path(self._store._strip_protocol(self._path(name)))
                with files.whole_file(target) as stream:
                    while content := source.read(RANGE_BYTES):
                        stream.write(content)
        else:
            options = {"chunksize": UPLOAD_PART_BYTES, "max_concurrency": 4} if self.scheme == "s3" else {}
            self._store.put_file(os.fspath(file), self._path(name), **options)

    def _holds(self, name: str, file: Path) -> bool:
        """Compare an object with a file: by size and MD5 where the store tells that, else by what it gives back."""
        information, size_bytes = self._information(name) or {}, file.stat().st_size
        if information.get("size") != size_bytes:
            return False
        if str(information.get("ETag", "")).strip('"') == _etag(file, size_bytes):
            return True
        digest = hashlib.sha256()
        for start in range(0, size_bytes, RANGE_BYTES):
            end = min(start + RANGE_BYTES, size_bytes)
            digest.update(self._range(name, start, end, size_bytes))
        return digest.hexdigest() == files.sha256_of(file)

    def _ask(self, name: str, question: Callable[[], Answer]) -> Answer:
        """The answer of the store, asked again where what failed may pass; a store that never answered, but once."""
        pauses_seconds = iter(PAUSES_SECONDS)
        while True:
            try:
                answer = question()
                self._has_answered = True
                return answer
            except PipelineError:
                raise
            except Exception as caught:
                error = _root(caught)
                self._has_answered = self._has_answered or not _is_silent(error)
                is_worth_it = self._has_answered and _may_pass(error)
                pause_seconds = next(pauses_seconds, None) if is_worth_it else None
                if pause_seconds is None:
                    raise self._explained(error, name, tried_again=is_worth_it) from caught
                log.warning("%s: %s; tried again in %s s", self._shown(name), self._reason(error), pause_seconds)
                time.sleep(pause_seconds)

    def _reason(self, error: BaseException) -> str:
        """A library's own words, short, and without what may be secret in the address."""
        text = re.sub(r"""(\w+://)[^\s'"/@]*@""", r"\1", str(error) or type(error).__name__)
        text = re.sub(r"""(\w+://[^\s'"?]*)\?[^\s'"]*""", r"\1", text)
        text = text.replace(" ssl:default", "")  # aiohttp says so without TLS, too
        before, _, query = self.url.partition("?")
        user = before.partition("://")[2].partition("/")[0].rpartition("@")[0]
        secrets = {user, user.partition(":")[2], query}
        for secret in sorted({*secrets, *map(unquote, secrets)} - {""}, key=len, reverse=True):
            text = text.replace(secret, "...")
        return " ".join(text.split())[:200]

    def _explained(self, error: BaseException, name: str, tried_again: bool) -> PipelineError:
        """The line for the user: what the store did, by the kind of exception of its library."""
        where, kinds, reason = self._shown(name), _kinds(error), self._reason(error)
        if isinstance(error, FileNotFoundError):
            answered = getattr(error.__cause__, "response", {}).get("Error", {})
            if answered.get("Code") != "NoSuchBucket":
                return _Missing("no such object", where=where)
            bucket = "/".join(str(self).split("/")[:3])
            advice = f"correct its name, or make it first: aws s3 mb {bucket}"
            return BadInput("no such bucket", where=self, advice=advice)
        if kinds & _NO_CREDENTIALS:
            advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_ANON=true for a public bucket"
            return BadInput(f"no credentials for the store ({reason})", where=self, advice=advice)
        if isinstance(error, PermissionError) or getattr(error, "status", 0) in (401, 403):
            return BadInput(f"the store refuses access ({reason})", where=where, advice="look at the credentials")
        if _is_silent(error):
            whose = ", and at AWS_ENDPOINT_URL where the store is not Amazon's" if self.scheme == "s3" else ""
            advice = f"look at the network{whose or ', and at the address'}"
            return BadInput(f"the store does not answer ({reason})", where=self, advice=advice)
        if kinds & _USAGE:
            return BadRecipe(f"the store cannot be asked so ({reason})", where=where)
        what = f"the store fails, {len(PAUSES_SECONDS) + 1} times" if tried_again else "the store fails"
        return BadInput(f"{what} ({reason})", where=where, advice="the same command goes on from here")


class _Missing(BadInput):
    """There is no such object."""


def _options(scheme: str) -> dict[str, Any]:
    """Time-outs of a kind of store; the user's own settings of fsspec count beside them."""
    if scheme == "s3":
        from fsspec.config import conf

        retries = {"total_max_attempts": 1, "mode": "standard"}
        ours = {"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENCE_SECONDS, "retries": retries}
        return {"config_kwargs": {**ours, **conf.get("s3", {}).get("config_kwargs", {})}, "use_listings_cache": False}
    if scheme in ("http", "https"):
        from aiohttp import ClientTimeout

        seconds = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        return {"client_kwargs": {"timeout": seconds, "trust_env": True}, "encoded": True}
    return {"auto_mkdir": True} if scheme == "file" else {}


def _etag(file: Path, size_bytes: int) -> str:
    """The ETag that S3 gives a file that was put: its MD5, or that of its parts' MD5s and their number."""
    with files.open_regular(file) as stream:
        if size_bytes < 2 * UPLOAD_PART_BYTES:
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        parts = []
        while content := stream.read(UPLOAD_PART_BYTES):
            parts.append(hashlib.md5(content, usedforsecurity=False).digest())
    return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


def _root(error: BaseException) -> BaseException:
    """The exception that a library met, where fsspec calls each failure of a web server a file that is missing."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None and not hasattr(cause, "response"):
        return error if getattr(cause, "status", 0) in (404, 410) else cause
    return error


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _is_silent(error: BaseException) -> bool:
    return isinstance(error, ConnectionRefusedError) or bool(_kinds(error) & _SILENT)


def _may_pass(error: BaseException) -> bool:
    """Tell what may be over in a moment: overload, a broken connection, a store that starts again."""
    if isinstance(error, FileNotFoundError | PermissionError) or _kinds(error) & (_NO_CREDENTIALS | _USAGE):
        return False
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in (408, 425, 429)
    return getattr(error, "errno", None) not in _HOPELESS
