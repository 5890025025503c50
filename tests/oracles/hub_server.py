"""A Hub on the loopback interface: the part of the Hugging Face Hub's HTTP protocol that its client uses here.

What it speaks was read off ``huggingface_hub`` (0.27 and 2.4): ``resolve`` with the headers that the client's cache is
built on, error codes in ``X-Error-Code``, the creation of repositories and branches, commits as newline-delimited JSON,
and Git LFS for tensors. Large files are redirected to a second port, as the Hub redirects to its CDN, so that a client
that sent its token there would be caught.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopback"


class HubError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers)
        if code:
            self.headers |= {"X-Error-Code": code, "X-Error-Message": message or code}


@dataclass
class Repo:
    """Commits (newest last) and the names that point at them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], message: str, branch: str = "main") -> str:
        """Add or replace files on a branch; returns the commit."""
        parent = self.refs.get(branch)
        tree = {**(self.commits[parent] if parent else {}), **files}
        digest = hashlib.sha1(f"{parent}{message}{len(self.commits)}".encode())
        for name, data in sorted(tree.items()):
            digest.update(name.encode() + data)
        sha = digest.hexdigest()
        self.commits[sha] = tree
        self.refs[branch] = sha
        self.messages.append(message)
        return sha

    def resolve(self, revision: str) -> str:
        """The commit behind a branch or a commit hash."""
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha


class HubServer:
    """``with HubServer() as hub:`` serves until the end of the block, or until ``hub.stop()``.

    Attributes:
        repos: ``owner/name`` to repository.
        requests: ``(method, path)`` of everything that was asked, in order.
        leaked: paths of the second port to which somebody sent a token.
        cut: bytes to withhold from the end of each large file, behind its announced length.
        fail: statuses to answer the next requests with, whatever they ask for.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.leaked: list[str] = []
        self.cut = 0
        self.fail: list[int] = []
        self._servers = [self._listen(self._answer_hub), self._listen(self._answer_storage)]
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening; connections are refused from here on."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers = []

    def add(self, repo_id: str, folder: Path, *, message: str = "upload", branch: str = "main") -> str:
        """Commit a folder's files; returns the commit."""
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        return self.repos.setdefault(repo_id, Repo()).commit(files, message, branch)

    def _listen(self, answer: Callable[..., tuple[int, dict[str, str], bytes]]) -> ThreadingHTTPServer:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                chunks = []
                while size := int(self.rfile.readline(), 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(chunks)

            def _respond(self) -> None:
                body = self._body()
                path = unquote(urlsplit(self.path).path)
                try:
                    status, headers, data = answer(self.command, path, self.headers, body)
                except HubError as error:
                    status, headers = error.status, error.headers
                    data = json.dumps({"error": str(error)}).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)
                if int(headers.get("Content-Length", len(data))) != len(data):
                    self.close_connection = True

            do_GET = do_HEAD = do_POST = do_PUT = _respond

            def log_message(self, *_: object) -> None:
                """Stay silent; ``requests`` is the log."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        # a short poll: stop() waits for it, and every test stops a server
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    # -- the Hub -------------------------------------------------------------------------------------------------

    def _answer_hub(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.requests.append((method, path))
        if self.fail:
            raise HubError(self.fail.pop(0), message="the loopback Hub was told to fail")
        authorized = headers.get("Authorization") == f"Bearer {TOKEN}"
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(*match.groups(), authorized)
        if method == "POST" and path == "/api/validate-yaml":
            return self._validate_card(json.loads(body)["content"])
        if method == "GET" and (match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)):
            repo_id, revision = match.groups()
            sha = self._repo(repo_id, authorized).resolve(revision or "main")
            siblings = [{"rfilename": name} for name in self.repos[repo_id].commits[sha]]
            return _json({"_id": repo_id, "id": repo_id, "modelId": repo_id, "sha": sha, "siblings": siblings})
        if method == "GET" and (match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path)):
            repo = self._repo(match[1], authorized)
            files = repo.commits[repo.resolve(match[2])]
            return _json([{"type": "file", "path": n, "size": len(d), "oid": _git_oid(d)} for n, d in files.items()])
        if method != "POST":
            raise HubError(404, message=f"the loopback Hub has no {method} {path}")
        if not authorized:
            raise HubError(401, message="Invalid credentials in Authorization header")
        return self._write(path, body)

    def _repo(self, repo_id: str, authorized: bool) -> Repo:
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and not authorized):
            raise HubError(401 if not authorized else 404, "RepoNotFound", "Repository not found")
        if repo.gated and not authorized:
            raise HubError(403, "GatedRepo", f"Access to model {repo_id} is restricted.")
        return repo

    def _resolve(self, repo_id: str, revision: str, name: str, authorized: bool) -> tuple[int, dict[str, str], bytes]:
        repo = self._repo(repo_id, authorized)
        sha = repo.resolve(revision)
        commit = {"X-Repo-Commit": sha}
        data = repo.commits[sha].get(name)
        if data is None:
            raise HubError(404, "EntryNotFound", "Entry not found", **commit)
        if not name.endswith(".safetensors"):
            return 200, {**commit, "ETag": f'"{_git_oid(data)}"'}, data
        oid = hashlib.sha256(data).hexdigest()
        self.large_files[oid] = data
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data)), "ETag": f'"{_git_oid(data)}"'}
        return 302, {**commit, **linked, "Location": f"{self.storage}/{oid}"}, b""

    def _validate_card(self, text: str) -> tuple[int, dict[str, str], bytes]:
        import yaml  # the Hub client needs it too

        match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        header = yaml.safe_load(match[1]) if match else None
        if not isinstance(header, dict):
            return _json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        wrong = [k for k in ("license", "library_name") if not isinstance(header.get(k, ""), str)]
        wrong += [k for k in ("tags", "datasets", "metrics") if not isinstance(header.get(k, []), list)]
        if wrong:
            return 400, {}, json.dumps({"errors": [{"message": f"{k} has the wrong type"} for k in wrong]}).encode()
        return _json({"errors": [], "warnings": []})

    def _write(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo_id = f"{asked['organization']}/{asked['name']}"
            url = {"url": f"{self.endpoint}/{repo_id}"}
            if repo_id in self.repos:
                return 409, {}, json.dumps({**url, "error": "You already created this model repo"}).encode()
            private = asked.get("private", False) or asked.get("visibility") == "private"
            self.repos[repo_id] = Repo(private=private)
            self.repos[repo_id].commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
            return _json(url)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", path):
            repo = self._repo(match[1], True)
            if match[2] in repo.refs:
                raise HubError(409, message="Reference already exists")
            repo.refs[match[2]] = repo.refs["main"]
            return _json({})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            repo = self._repo(match[1], True)
            tree = repo.commits[repo.resolve(match[2])]
            return _json({"files": [_upload_mode(file["path"], tree) for file in json.loads(body)["files"]]})
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._repo(match[1], True)
            return _json({"transfer": "basic", "objects": [self._upload(o) for o in json.loads(body)["objects"]]})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            return self._commit(match[1], match[2], body)
        raise HubError(404, message=f"the loopback Hub has no POST {path}")

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        known = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self.large_files:
            return known
        return {**known, "actions": {"upload": {"href": f"{self.storage}/{wanted['oid']}", "header": {}}}}

    def _commit(self, repo_id: str, branch: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        repo = self._repo(repo_id, True)
        files, message = {}, ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.large_files:
                    raise HubError(400, message=f"{value['path']} was not uploaded before the commit")
                files[value["path"]] = self.large_files[value["oid"]]
            else:
                raise HubError(400, message=f"the loopback Hub does not know {entry['key']}")
        repo.resolve(branch)
        sha = repo.commit(files, message, branch)
        return _json({"success": True, "commitOid": sha, "commitUrl": f"{self.endpoint}/{repo_id}/commit/{sha}"})

    # -- storage of large files ----------------------------------------------------------------------------------

    def _answer_storage(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        oid = path.removeprefix("/")
        self.requests.append((method, f"/storage{path}"))
        if headers.get("Authorization"):
            self.leaked.append(path)
        if method == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                raise HubError(400, message="the content does not have the announced SHA-256")
            self.large_files[oid] = body
            return 200, {}, b""
        data = self.large_files[oid]
        return 200, {"ETag": f'"{oid}"', "Content-Length": str(len(data))}, data[: len(data) - self.cut]


def _upload_mode(path: str, tree: dict[str, bytes]) -> dict[str, Any]:
    large = path.endswith(".safetensors")
    oid = (hashlib.sha256(tree[path]).hexdigest() if large else _git_oid(tree[path])) if path in tree else None
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()
