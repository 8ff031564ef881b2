"""A web server on 127.0.0.1 that speaks the part of the hub's API that runs need: repositories, commits, LFS, files.

It keeps every commit, so that a revision can be asked for later. It is written from the documented API, not from
audiogen's use of it: https://huggingface.co/docs/hub/api and the git-lfs batch protocol.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"


@dataclass
class Repository:
    """Commits in order, each a dict of files; and the branches and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha], self.refs["main"] = dict(files), sha
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None

    @property
    def newest(self) -> dict[str, bytes]:
        return self.commits[self.refs["main"]]


@dataclass
class Hub:
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # of LFS, by SHA-256
    status: int | None = None  # answered to everything
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def say(self, value: object, status: int = 200, **headers: str) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def refuse(self, code: str) -> None:
        self.say({"error": code}, 404, X_Error_Code=code)

    def handle_any(self) -> None:
        hub: Hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        hub.requests.append((self.command, path))
        if hub.status:
            self.say({"error": "told to"}, hub.status)
        elif self.command in ("POST", "PUT"):
            allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}" or path.startswith("/lfs/")
            self.write(hub, path, body) if allowed else self.say({"error": "Invalid credentials"}, 401)
        else:
            self.read(hub, path)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def read(self, hub: Hub, path: str) -> None:
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+).*)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = found or file
        if not match or match[1] not in hub.repositories:
            return self.refuse("RepoNotFound")
        repository = hub.repositories[match[1]]
        sha = repository.resolve((found[3] if found else file[2]) or "main")
        if sha is None:
            return self.refuse("RevisionNotFound")
        files = repository.commits[sha]
        if found and found[2] == "tree":
            return self.say([_entry(name, data) for name, data in files.items()])
        if found:
            about = {"_id": "1", "id": match[1], "sha": sha, "private": False, "downloads": 0, "likes": 0, "tags": []}
            return self.say({**about, "siblings": [{"rfilename": name} for name in files]})
        if file[3] not in files:
            return self.refuse("EntryNotFound")
        data = files[file[3]]
        entry = _entry(file[3], data)
        etag = entry.get("lfs", entry)["oid"]
        self.answer(200, data, ETag=f'"{etag}"', X_Repo_Commit=sha, Accept_Ranges="bytes")

    def write(self, hub: Hub, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            values = json.loads(body)
            name = f"{values.get('organization') or 'me'}/{values['name']}"
            if values.get("organization") == "others":
                return self.say({"error": "You don't have the rights"}, 403)
            if name in hub.repositories:
                return self.say({"error": "exists", "url": f"{hub.url}/{name}"}, 409)
            hub.repositories[name] = Repository()
            hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
            return self.say({"url": f"{hub.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.say({"warnings": [], "errors": []})
        if path.startswith("/lfs/"):
            hub.objects[path.removeprefix("/lfs/")] = body
            return self.answer(200)
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = json.loads(body)["objects"]
            action = {one["oid"]: {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}} for one in objects}
            return self.say(
                {"transfer": "basic", "objects": [{**one, "actions": action[one["oid"]]} for one in objects]}
            )
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        if not found or found[1] not in hub.repositories:
            return self.refuse("RepoNotFound")
        repository = hub.repositories[found[1]]
        if found[2] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith((".safetensors", ".wav")) else "regular" for name in names}
            files = [{"path": n, "uploadMode": mode, "shouldIgnore": False, "oid": None} for n, mode in modes.items()]
            return self.say({"files": files})
        files = dict(repository.newest)
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                data = hub.objects[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"]
                files[value["path"]] = data
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files)
        url = f"{hub.url}/{found[1]}/commit/{sha}"
        return self.say({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def log_message(self, *arguments):
        pass


def _entry(name: str, data: bytes) -> dict:
    """A file as the listing of a tree names it."""
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"type": "file", "path": name, "size": len(data), "oid": oid}
    if name.endswith((".safetensors", ".wav")):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


@contextmanager
def hub_server(port: int = 0) -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.hub = hub
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
