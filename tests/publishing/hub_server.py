"""
A Hub on loopback, for the real `huggingface_hub` client: models, commits, branches, pull requests, and Git LFS.

Routes and answers follow the requests and expectations of the client in `huggingface_hub`. Files are stored by content, as in
git. A commit refers to its parent and to the hashes of its files. A branch changes only after a complete commit.

    with HubServer() as hub:
        hub.fail("PUT", number=2, status=507)
        ...  # with HF_ENDPOINT=hub.url HF_TOKEN=hub.token HF_HUB_DISABLE_XET=1
        hub.head("someone/asr"), hub.files("someone/asr"), hub.count("PUT")
"""

import base64
import fnmatch
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK


GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
DATE = "2026-01-01T00:00:00.000Z"
MAX_REGULAR_SIZE = 10_000_000


class HubError(Exception):
    """An error response. The client reads `code` from `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class File:
    """A file in a commit."""

    oid: str
    size: int
    sha256: str | None = None

    @classmethod
    def regular(cls, content: bytes) -> "File":
        return cls(git_hash("blob", content), len(content))

    @classmethod
    def large(cls, sha256: str, size: int) -> "File":
        return cls(git_hash("blob", lfs_pointer(sha256, size)), size, sha256)


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    files: dict[str, File]


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    num_pull_requests: int = 0

    def __post_init__(self):
        self.add(GIT_ATTRIBUTES)
        self.commit("main", "initial commit", None, {".gitattributes": File.regular(GIT_ATTRIBUTES)})

    def add(self, content: bytes) -> File:
        file = File.regular(content)
        self.blobs[file.oid] = content
        return file

    def commit(self, branch: str, title: str, parent: str | None, files: dict[str, File]) -> str:
        listing = "\n".join(f"{file.oid} {name}" for name, file in sorted(files.items()))
        oid = git_hash("commit", f"{git_hash('tree', listing.encode())}\n{parent}\n{title}".encode())
        self.commits[oid] = Commit(oid, parent, title, files)
        self.branches[branch] = oid
        return oid

    def find(self, revision: str) -> Commit:
        oid = self.branches.get(revision.removeprefix("refs/heads/"), revision)
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def read(self, file: File) -> bytes:
        return self.blobs[file.oid] if file.sha256 is None else self.large[file.sha256]


@dataclass
class Fault:
    """An error for the request number `number` of a kind, and for all later ones if it is `lasting`."""

    method: str
    path: str
    number: int
    lasting: bool
    status: int
    seen: int = 0

    def hits(self, method: str, path: str) -> bool:
        if method != self.method or not fnmatch.fnmatch(path, self.path):
            return False
        self.seen += 1
        return self.seen == self.number or (self.lasting and self.seen > self.number)


class HubServer(ThreadingHTTPServer):
    """
    Attributes:
        url (`str`): Value for `HF_ENDPOINT`.
        token (`str`): Value for `HF_TOKEN`. It belongs to the user `someone`, who may only write to their own repositories.
        requests (`list[tuple[str, str]]`): Methods and paths of requests in order.
        repositories (`dict[str, Repository]`): Repositories by id.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.token, self.user = "hf_someone", "someone"
        self.requests: list[tuple[str, str]] = []
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.lock = threading.RLock()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Ignore disconnecting clients, which are part of the tests."""

    def fail(self, method: str, number: int = 1, path: str = "*", status: int = 500, lasting: bool = False) -> Fault:
        """Answer a request with an error, without any other effect."""
        fault = Fault(method, path, number, lasting, status)
        self.faults.append(fault)
        return fault

    def count(self, method: str, path: str = "*") -> int:
        return sum(method == one and fnmatch.fnmatch(where, path) for one, where in self.requests)

    def head(self, repo_id: str, revision: str = "main") -> str:
        return self.repositories[repo_id].find(revision).oid

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return {name: repository.read(file) for name, file in repository.find(revision).files.items()}

    def history(self, repo_id: str, revision: str = "main") -> list[str]:
        """Titles of commits, newest first."""
        repository, titles = self.repositories[repo_id], []
        commit = repository.find(revision)
        while commit is not None:
            titles.append(commit.title)
            commit = repository.commits.get(commit.parent)
        return titles


class HubRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Answers are small and sent in several packets, which Nagle's algorithm would delay.
    disable_nagle_algorithm = True
    server: HubServer

    def log_message(self, *arguments):
        """Print nothing. Tests read `HubServer.requests`."""

    def handle_any(self):
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        # The client only quotes slashes in revisions.
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        with self.server.lock:
            self.server.requests.append((self.command, url.path))
            fault = next((fault for fault in self.server.faults if fault.hits(self.command, url.path)), None)
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(length)
        if len(self.body) < length:
            self.close_connection = True
            return
        try:
            if fault is not None:
                raise HubError(fault.status, "Out of order")
            with self.server.lock:
                self.route(parts)
        except HubError as error:
            headers = {"X-Error-Message": str(error), **({"X-Error-Code": error.code} if error.code else {})}
            self.answer({"error": str(error)}, error.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def answer(self, content, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def route(self, parts: list[str]) -> None:
        match (self.command, *parts):
            case ("POST", "api", "repos", "create"):
                self.create_repository(json.loads(self.body))
            case ("POST", "api", "validate-yaml"):
                self.validate_card(json.loads(self.body)["content"])
            case ("GET", "api", "models", user, name):
                self.describe(f"{user}/{name}", "main")
            case ("GET", "api", "models", user, name, "revision", revision):
                self.describe(f"{user}/{name}", revision)
            case ("GET", "api", "models", user, name, "tree", revision):
                files = self.repository(f"{user}/{name}").find(revision).files
                self.answer([describe_file(path, file) for path, file in sorted(files.items())])
            case ("POST", "api", "models", user, name, "branch", branch):
                self.create_branch(self.repository(f"{user}/{name}", write=True), branch, json.loads(self.body))
            case ("POST", "api", "models", user, name, "preupload", revision):
                self.preupload(self.repository(f"{user}/{name}", write=True), revision, json.loads(self.body)["files"])
            case ("POST", "api", "models", user, name, "commit", revision):
                self.commit(f"{user}/{name}", revision, [json.loads(line) for line in self.body.splitlines()])
            case ("POST", user, repository, "info", "lfs", "objects", "batch"):
                repo_id = f"{user}/{repository.removesuffix('.git')}"
                self.lfs_batch(repo_id, self.repository(repo_id, write=True), json.loads(self.body)["objects"])
            case ("POST", user, name, "verify"):
                self.verify_large(self.repository(f"{user}/{name}", write=True), json.loads(self.body))
            case ("PUT", "lfs", user, name, sha256):
                self.put_large(self.server.repositories[f"{user}/{name}"], sha256)
            case ("GET" | "HEAD", "lfs", user, name, sha256):
                self.answer(self.server.repositories[f"{user}/{name}"].large[sha256])
            case ("GET" | "HEAD", user, name, "resolve", revision, *path):
                self.resolve(f"{user}/{name}", revision, "/".join(path))
            case _:
                raise HubError(501, f"This server has no route for {self.command} {self.path}")

    def knows_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def require_token(self) -> None:
        if not self.knows_token():
            raise HubError(401, "Invalid credentials in Authorization header")

    def repository(self, repo_id: str, write: bool = False) -> Repository:
        """Find a repository. A private repository does not exist for users without access."""
        repository = self.server.repositories.get(repo_id)
        if repository is None or (repository.private and not self.knows_token()):
            raise HubError(404 if self.knows_token() else 401, "Repository not found", "RepoNotFound")
        if write:
            self.require_token()
            if repo_id.partition("/")[0] != self.server.user:
                raise HubError(403, f"You have no right to write to {repo_id}")
        return repository

    def create_repository(self, request: dict) -> None:
        self.require_token()
        repo_id = f"{request['organization'] or self.server.user}/{request['name']}"
        if not repo_id.startswith(f"{self.server.user}/"):
            raise HubError(403, f"You have no right to create a model under {request['organization']}")
        url = f"{self.server.url}/{repo_id}"
        if repo_id in self.server.repositories:
            self.answer({"error": "You already created this model repo", "url": url}, 409)
            return
        self.server.repositories[repo_id] = Repository(request.get("visibility") == "private")
        self.answer({"url": url, "name": repo_id, "id": repo_id})

    def validate_card(self, content: str) -> None:
        """Check a model card. Invalid YAML, and results that the Hub cannot show, prevent a commit."""
        match = REGEX_YAML_BLOCK.search(content)
        errors = []
        try:
            data = yaml.safe_load(match.group(2)) if match else {}
            for model in data.get("model-index", []):
                for result in model["results"]:
                    for path in ("task.type", "dataset.name", "dataset.type"):
                        group, name = path.split(".")
                        if not isinstance(result[group][name], str):
                            errors.append(f'"{path}" must be a string')
                    errors += [f"{metric} has no value" for metric in result["metrics"] if metric.get("value") is None]
            for name in ("language", "base_model", "datasets", "tags"):
                values = data.get(name, [])
                if not all(isinstance(value, str) for value in ([values] if isinstance(values, str) else values)):
                    errors.append(f'"{name}" must hold strings')
        except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            errors.append(f"{type(error).__name__}: {error}")
        described = [{"message": error} for error in errors]
        self.answer({"errors": described, "warnings": []}, 400 if errors else 200)

    def describe(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id)
        commit = repository.find(revision)
        card = (
            REGEX_YAML_BLOCK.search(repository.read(commit.files["README.md"]).decode())
            if "README.md" in commit.files
            else None
        )
        self.answer(
            {
                "_id": "0" * 24,
                "id": repo_id,
                "modelId": repo_id,
                "sha": commit.oid,
                "private": repository.private,
                "gated": False,
                "disabled": False,
                "lastModified": DATE,
                "createdAt": DATE,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
                "cardData": yaml.safe_load(card.group(2)) if card else None,
            }
        )

    def create_branch(self, repository: Repository, branch: str, request: dict) -> None:
        if branch in repository.branches:
            raise HubError(409, f"Reference already exists: {branch}")
        repository.branches[branch] = repository.find(request.get("startingPoint", "main")).oid
        self.answer({})

    def preupload(self, repository: Repository, revision: str, files: list[dict]) -> None:
        """Tell the client how to upload each file. `oid` lets the client skip unchanged files."""
        present = repository.find(revision).files
        answers = []
        for file in files:
            large = file["size"] > MAX_REGULAR_SIZE or b"\0" in base64.b64decode(file["sample"])
            known = present.get(file["path"])
            oid = known and (known.sha256 or known.oid)
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": answers})

    def lfs_batch(self, repo_id: str, repository: Repository, objects: list[dict]) -> None:
        answers = []
        for one in objects:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in repository.large:
                href = f"{self.server.url}/lfs/{repo_id}/{one['oid']}"
                actions = {"upload": {"href": href}, "verify": {"href": f"{self.server.url}/{repo_id}/verify"}}
                answer |= {"authenticated": True, "actions": actions}
            answers.append(answer)
        self.answer({"transfer": "basic", "objects": answers})

    def put_large(self, repository: Repository, sha256: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise HubError(400, "The content is not that of the checksum")
        repository.large[sha256] = self.body
        self.answer(b"")

    def verify_large(self, repository: Repository, described: dict) -> None:
        if len(repository.large.get(described["oid"], b"")) != described["size"]:
            raise HubError(404, f"LFS object {described['oid']} has not been uploaded")
        self.answer({})

    def commit(self, repo_id: str, revision: str, lines: list[dict]) -> None:
        repository = self.repository(repo_id, write=True)
        (header,) = [line["value"] for line in lines if line["key"] == "header"]
        create_pr = self.query.get("create_pr") == "1"
        parent, wanted = repository.find(revision), header.get("parentCommit")
        if wanted is not None and create_pr:
            parent = repository.find(wanted)
        elif wanted is not None and not parent.oid.startswith(wanted):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        elif revision not in repository.branches:
            raise HubError(400, f"{revision} is no branch")
        files = dict(parent.files)
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = repository.add(base64.b64decode(value["content"]))
                case "lfsFile":
                    if value["oid"] not in repository.large:
                        raise HubError(400, f"LFS object {value['oid']} of {value['path']} has not been uploaded")
                    files[value["path"]] = File.large(value["oid"], len(repository.large[value["oid"]]))
                case "deletedFile":
                    if value["path"] not in files:
                        raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                    del files[value["path"]]
                case "header":
                    pass
                case other:
                    raise HubError(400, f"Unknown operation {other}")
        answer = {"success": True, "hookOutput": ""}
        if create_pr:
            repository.num_pull_requests += 1
            revision = f"refs/pr/{repository.num_pull_requests}"
            answer["pullRequestUrl"] = f"{self.server.url}/{repo_id}/discussions/{repository.num_pull_requests}"
        oid = repository.commit(revision, header["summary"], parent.oid, files)
        self.answer({**answer, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo_id}/commit/{oid}"})

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repository = self.repository(repo_id)
        commit = repository.find(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        file = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid}
        if file.sha256 is None:
            self.answer(repository.read(file), 200, {**headers, "ETag": f'"{file.oid}"'})
            return
        # Large files are on another host, and the redirect has their metadata.
        headers |= {
            "X-Linked-Size": str(file.size),
            "X-Linked-ETag": f'"{file.sha256}"',
            "Location": f"http://localhost:{self.server.server_port}/lfs/{quote(repo_id)}/{file.sha256}",
        }
        self.answer(b"", 302, headers)


def git_hash(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def describe_file(path: str, file: File) -> dict:
    described = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
    if file.sha256 is not None:
        pointer_size = len(lfs_pointer(file.sha256, file.size))
        described["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": pointer_size}
    return described
