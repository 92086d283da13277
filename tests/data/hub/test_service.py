"""The hub itself, served by this process: scripts, parquet, interruptions, no network."""

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import pytest
from PIL import Image

from maekit.data import hub
from tests.support import KIT, run
from tests.support.hub import CLASSES, CLIENT, dataset_dict, read, save_converted, save_named


class Hub(ThreadingHTTPServer):
    """Repositories under `root`, as <owner>/<name>/<revision>/files, over the part of the hub's HTTP interface that
    the libraries use to look up and download a data set. `asked` lists the paths asked for."""

    daemon_threads = True

    def __init__(self, root):
        self.root, self.asked = root, []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(self.path)
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts == [""]:
            return self.answer(200, b"hub")
        api = parts[0] == "api"
        if len(parts) < 3:
            return self.answer(404)
        owner, name, *rest = parts[2:] if api else parts[1:]
        verb, revision, *path = rest or ["revision", "main"]
        if owner == "gated":
            return self.answer(403 if api else 401, error="GatedRepo")
        repository = self.server.root / owner / name
        if not repository.is_dir():
            return self.answer(401, error="RepoNotFound")
        revisions = {r.name: r for r in repository.iterdir()}
        by_commit = {hashlib.sha1(r.encode()).hexdigest(): r for r in revisions}
        revision = by_commit.get(revision, revision).replace("/", "%2F")
        if revision not in revisions:
            return self.answer(404, error="RevisionNotFound")
        self.commit, base = hashlib.sha1(revision.encode()).hexdigest(), revisions[revision]
        if verb == "resolve":
            file = base.joinpath(*path)
            return self.answer(200, read(file)) if file.is_file() else self.answer(404, error="EntryNotFound")
        entries = [self.entry(base, f) for f in sorted(base.rglob("*"))]
        if verb == "revision":
            files = [{"rfilename": e["path"]} for e in entries if e["type"] == "file"]
            return self.json({"id": f"{owner}/{name}", "sha": self.commit, "siblings": files, "private": False})
        if verb == "paths-info":
            wanted = parse_qs(form).get("paths", [])
            return self.json([e for e in entries if e["path"] in wanted])
        assert verb == "tree", self.path
        folder, deep = "/".join(path), "recursive=true" in self.path.lower()
        inside = [e for e in entries if not folder or e["path"].startswith(folder + "/")]
        if folder and not inside:
            return self.answer(404, error="EntryNotFound")
        depth = len(path) + 1
        return self.json([e for e in inside if deep or e["path"].count("/") < depth])

    do_HEAD = do_POST = do_GET

    @staticmethod
    def entry(base, file):
        path = file.relative_to(base).as_posix()
        oid = hashlib.sha1(path.encode()).hexdigest()
        if file.is_dir():
            return {"type": "directory", "path": path, "oid": oid, "size": 0}
        return {"type": "file", "path": path, "oid": oid, "size": file.stat().st_size}

    def json(self, value):
        self.answer(200, json.dumps(value).encode(), "application/json")

    def answer(self, status, body=b"", kind="application/octet-stream", error=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        if error:
            self.send_header("X-Error-Code", error)
        else:
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", getattr(self, "commit", ""))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def ask(hub_url, home, *sets, **env):
    """What open_splits gives or says for each (name, config), in a process of its own, and the seconds it took."""
    env = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_TOKEN": "", "PYTHONWARNINGS": "ignore", **env}
    result = run(sys.executable, "-c", CLIENT, json.dumps(sets), cwd=KIT, env=env, check=0)
    assert "Traceback" not in result.stderr, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def repositories(files, tmp_path_factory):
    """A hub's repositories: a loading script with its conversion, parquet files, and what cannot be used."""
    root, made = tmp_path_factory.mktemp("repositories"), dataset_dict(files)
    small = dataset_dict(files, train=files["train"][:30])

    def script(name):
        (root / name / "main").mkdir(parents=True)
        (root / name / "main" / f"{name.split('/')[1]}.py").write_text("raise SystemExit('a script was run')\n")
        (root / name / "main" / "README.md").write_text("---\nlicense: mit\n---\n")
        return root / name / "refs%2Fconvert%2Fparquet"

    converted = script("owner/scripted")
    save_converted(made, converted, "320px")
    save_converted(small, converted, "160px")
    (converted / ".gitattributes").write_text("*.parquet filter=lfs\n")
    save_converted(made, script("owner/scripted-once"), "default")
    save_converted(made, script("owner/scripted-partly"), "default")
    partly = root / "owner/scripted-partly/refs%2Fconvert%2Fparquet/default"
    (partly / "train").rename(partly / "partial-train")
    script("owner/scripted-only")

    parquet = save_named(made, root / "owner/parquet/main")
    (parquet / "README.md").write_text("# Images\n")
    configs = ["---", "configs:"]
    for config, rows in (("large", made), ("small", small)):
        save_named(rows, root / "owner/configs/main", f"{config}/")
        configs += [f"- config_name: {config}", "  data_files:"]
        configs += [f"  - split: {split}\n    path: {config}/{split}-*" for split in made]
    (root / "owner/configs/main/README.md").write_text("\n".join([*configs, "---", ""]))
    (root / "owner/text/main").mkdir(parents=True)
    (root / "owner/text/main/notes.md").write_text("no data\n")
    return root


WORKING = [
    ("owner/scripted", "320px"),
    ("owner/scripted-once", None),
    ("owner/parquet", None),
    ("owner/configs", "large"),
]


@pytest.mark.slow
def test_scripts_and_parquet_repositories_load_and_work_offline_afterwards(files, saved, repositories, tmp_path):
    served = Hub(repositories)
    online = ask(served.url, tmp_path, *WORKING)
    assert not [path for path in served.asked if "160px" in path and "resolve" in path]  # only what was asked for
    for (name, _), (said, _) in zip(WORKING, online, strict=True):
        assert isinstance(said, list), said
        train_root, val_root, labels, n_val, classes, fingerprint, pixels = said
        assert (train_root, val_root, n_val) == (f"{name} train", f"{name} validation", 15)
        assert labels == [y for _, y in files["train"]] and tuple(classes) == CLASSES
        assert fingerprint == hub.open_splits(str(saved))[3]
        assert bytes.fromhex(pixels) == Image.open(files["train"][17][0]).tobytes()
    served.shutdown()
    served.server_close()

    never = [("owner/scripted", "160px"), ("owner/configs", "small"), ("owner/never", None)]
    for env in ({}, {"HF_HUB_OFFLINE": "1"}):
        offline = ask(served.url, tmp_path, *WORKING, *never, **env)
        assert [said for said, _ in offline[: len(WORKING)]] == [said for said, _ in online]
        for said, seconds in offline[len(WORKING) :]:
            assert "cannot be reached" in said and "--imagenet_dir" in said and "\n" not in said
            assert seconds < 60
        assert "large" in offline[-2][0]  # what the cache has


@pytest.mark.slow
def test_an_interrupted_download_is_not_taken_for_the_whole(repositories, tmp_path):
    served = Hub(repositories)
    assert isinstance(ask(served.url, tmp_path, ("owner/scripted", "320px"))[0][0], list)
    served.shutdown()
    served.server_close()
    shard = next(tmp_path.rglob("320px/train/0001.parquet"))
    shard.unlink()
    assert "cannot be reached" in ask(served.url, tmp_path, ("owner/scripted", "320px"))[0][0]


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_one_line(repositories, tmp_path):
    served = Hub(repositories)
    expected = {
        ("owner/none", None): ["no such data set", "private"],
        ("gated/set", None): ["is gated", "https://huggingface.co/datasets/gated/set"],
        ("owner/scripted", None): ["--hf_config", "160px, 320px"],
        ("owner/scripted", "640px"): ["no such configuration", "160px, 320px"],
        ("owner/scripted-partly", None): ["only a part", "partial-train"],
        ("owner/scripted-only", None): ["loading script", "not converted"],
        ("owner/configs", None): ["--hf_config", "large", "small"],
        ("owner/configs", "medium"): ["no such configuration", "large", "small"],
        ("owner/parquet", "320px"): ["no such configuration", "default"],
        ("owner/text", None): ["no data files"],
        ("not a name", None): ["no such data set"],
    }
    for ((name, config), parts), (said, seconds) in zip(
        expected.items(), ask(served.url, tmp_path, *expected), strict=True
    ):
        assert isinstance(said, str) and said.startswith(f"--hf_dataset {name}") and "\n" not in said
        assert config is None or f"--hf_config {config}" in said
        for part in parts:
            assert part in said, said
    assert not [path for path in served.asked if "parquet" in path and "resolve" in path and path.endswith(".parquet")]


def test_a_name_server_that_does_not_answer_ends_in_seconds(monkeypatch):
    """Looking up a name has no limit of its own."""
    from huggingface_hub import constants, utils

    class Session:
        def head(self, *_, **__):
            forever.wait()

    forever = threading.Event()
    monkeypatch.setattr(utils, "get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", -1.9)
    assert hub._unreachable().startswith("no answer in 0.1")
    forever.set()


def test_opening_a_folder_asks_nobody(repositories, tmp_path, monkeypatch):
    """`datasets` would report that it was opened."""
    import socket

    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: asked.append(where))
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    folder = next(repositories.rglob("320px")).parent
    assert len(hub.open_splits(str(folder), "320px")[1]) and not asked


@pytest.mark.slow
def test_a_hub_that_does_not_answer_ends_in_seconds(tmp_path):
    """A port that accepts and stays silent, and a host that does not exist."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ((said, seconds),) = ask(url, tmp_path, ("frgfm/imagenette", "320px"), HF_HUB_ETAG_TIMEOUT="2")
        assert seconds < 60
    assert said.startswith("--hf_dataset frgfm/imagenette --hf_config 320px: the hub cannot be reached (ReadTimeout")
    ((said, seconds),) = ask("http://hub.invalid", tmp_path, ("frgfm/imagenette", "320px"))
    assert "cannot be reached" in said and "--demo" in said and seconds < 60
