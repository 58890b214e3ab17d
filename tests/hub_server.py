"""A Hugging Face Hub on a loopback port: the part of its API that huggingface_hub asks for, and its faults."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"
NOT_FOUND = (HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
ANONYMOUS = (HTTPStatus.UNAUTHORIZED, "", "Invalid username or password.")
WRONG_TOKEN = (HTTPStatus.UNAUTHORIZED, "", "Invalid credentials in Authorization header")
GATED = (HTTPStatus.UNAUTHORIZED, "GatedRepo", "Access to this model is restricted.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request that arrived."""

    method: str
    path: str  # without the query
    authorization: str | None
    range: str | None


@dataclass(slots=True, kw_only=True)
class Repository:
    """One repository: its commits, and who may read it. `gated` ones may be listed by anyone, as on the real Hub."""

    commits: dict[str, Mapping[str, bytes]]  # commit -> path -> content
    names: dict[str, str]  # branch or tag -> commit
    access: Literal["public", "gated", "private"] = "public"


@dataclass(slots=True)
class Hub:
    """The server; `with Hub() as hub` runs it in a thread."""

    repositories: dict[str, Repository] = field(default_factory=dict)  # "owner/name", "datasets/owner/name"
    seen: list[Seen] = field(default_factory=list)
    cuts: dict[str, list[int]] = field(default_factory=dict)  # "NAME/PATH" -> where to cut each GET
    server: ThreadingHTTPServer = field(init=False)

    def __enter__(self) -> Self:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def add(
        self,
        name: str,
        files: Mapping[str, bytes],
        *,
        commit: str = "c0" * 20,
        branch: str = "main",
        access: Literal["public", "gated", "private"] = "public",
    ) -> None:
        """Put a commit into a repository, made where it is missing; a dataset's name starts with `datasets/`."""
        repository = self.repositories.setdefault(name, Repository(commits={}, names={}))
        repository.commits[commit] = files
        repository.names[branch] = commit
        repository.access = access

    def files(self, method: str, name: str) -> list[str]:
        """`COMMIT-OR-BRANCH/PATH` of every file of a repository that was asked for, in name order."""
        prefix = f"/{name}/resolve/"
        return sorted(
            one.path.removeprefix(prefix) for one in self.seen if one.method == method and one.path.startswith(prefix)
        )


def files_of(folder: Path) -> dict[str, bytes]:
    """Path -> content of all files under a folder, as `Hub.add` takes them."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing: `Hub.seen` is the log."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = self.headers
        seen = Seen(method=self.command, path=path, authorization=headers["Authorization"], range=headers["Range"])
        self.hub.seen.append(seen)
        parts = path.strip("/").removeprefix("api/").removeprefix("models/").split("/")
        depth = 3 if parts[0] == "datasets" else 2
        name, call = "/".join(parts[:depth]), parts[depth:]
        asks_file = bool(call) and call[0] == "resolve"
        if fault := self._refuse(name, asks_file=asks_file):
            self._error(*fault)
            return
        repository = self.hub.repositories[name]
        wanted = call[1] if len(call) > 1 else "main"
        commit = repository.names.get(wanted, wanted)
        if commit not in repository.commits:
            self._error(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {wanted}")
        elif asks_file:
            self._file(name, "/".join(call[2:]), commit)
        elif call and call[0] == "tree":
            self._json([
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in repository.commits[commit].items()
            ])  # fmt: skip
        else:
            self._json({"id": name.removeprefix("datasets/"), "sha": commit})

    def _refuse(self, name: str, *, asks_file: bool) -> tuple[HTTPStatus, str, str] | None:
        repository, authorization = self.hub.repositories.get(name), self.headers["Authorization"]
        if authorization not in (None, f"Bearer {TOKEN}"):
            return WRONG_TOKEN
        if repository is None:
            return NOT_FOUND if authorization else ANONYMOUS
        if repository.access == "private" and not authorization:
            return ANONYMOUS
        if repository.access == "gated" and asks_file and not authorization:
            return GATED
        return None

    def _file(self, name: str, path: str, commit: str) -> None:
        files = self.hub.repositories[name].commits[commit]
        if path not in files:
            self._error(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
            return
        content, start = files[path], 0
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        if self.headers["Range"]:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = self.hub.cuts.get(f"{name}/{path}", []) if self.command == "GET" else []
        status = HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK
        self._send(status, content[start:], cut=cuts.pop(0) if cuts else None, **headers)

    def _json(self, value: object) -> None:
        self._send(HTTPStatus.OK, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _error(self, status: HTTPStatus, code: str, message: str, **headers: str) -> None:
        headers |= {"X-Error-Code": code} if code else {}
        self._send(status, json.dumps({"error": message}).encode(), **headers, **{"X-Error-Message": message})

    def _send(self, status: HTTPStatus, content: bytes, *, cut: int | None = None, **headers: str) -> None:
        """Answer with `content`; `cut` closes the connection after that many bytes of it."""
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        self.close_connection = self.close_connection or cut is not None
