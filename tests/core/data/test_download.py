"""Tests of downloads from local servers that behave like correct, interrupted, wrong and unreachable mirrors."""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from zerokara.core.config import UserError
from zerokara.core.data import download, load, sources
from zerokara.core.data.download import Remote, fetch

CONTENT = np.random.default_rng(0).bytes(700_001)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Mirror:
    """HTTP server of one file. `breaks` lists, for the first requests, the bytes after which the connection closes."""

    def __init__(self, content: bytes = CONTENT, *, ranges: bool = True, status: int = 200) -> None:
        self.content, self.ranges, self.status = content, ranges, status
        self.length = ""  # Content-Length to send instead of the right one
        self.location = ""  # address of a redirect
        self.breaks: list[int] = []
        self.requested: list[str | None] = []  # the Range of every request
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.answer(self)

            def log_message(self, *_: object) -> None:
                """Do not log requests."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/set.gz"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        range_ = request.headers.get("Range")
        self.requested.append(range_)
        start = int(range_.removeprefix("bytes=").rstrip("-")) if range_ and self.ranges else 0
        if self.location:
            request.send_response(302)
            request.send_header("Location", self.location)
            request.end_headers()
            return
        if self.status != 200:
            request.send_error(self.status)
            return
        if start >= len(self.content):
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        if start:
            last = len(self.content) - 1
            request.send_header("Content-Range", f"bytes {start}-{last}/{len(self.content)}")
        request.send_header("Content-Length", self.length or str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.breaks.pop(0)] if self.breaks else body)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Mirror]]:
    monkeypatch.setenv("no_proxy", "*")
    started: list[Mirror] = []

    def start(*args: bytes, **options: int) -> Mirror:
        started.append(Mirror(*args, **options))  # type: ignore[arg-type]  # forwarded
        return started[-1]

    yield start
    for server in started:
        server.close()


def get(folder: Path, *mirrors: Mirror, progress: Callable[[str, int, int], None] | None = None) -> bytes:
    fetch([Remote("set.gz", MD5, tuple(mirror.url for mirror in mirrors))], folder, "The set", progress)
    assert [path.name for path in folder.iterdir()] == ["set.gz"]
    return (folder / "set.gz").read_bytes()


def test_file_is_downloaded_completely_and_only_once(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    server = mirror()
    updates: list[tuple[str, int, int]] = []
    folder = tmp_path / "new" / "folder"
    assert get(folder, server, progress=lambda *update: updates.append(update)) == CONTENT
    assert updates[-1] == ("bytes of set.gz downloaded", len(CONTENT), len(CONTENT))
    assert len(updates) >= 3
    assert [done for _, done, _ in updates] == sorted(done for _, done, _ in updates)
    assert get(folder, server) == CONTENT
    assert server.requested == [None]


def test_interrupted_download_is_resumed(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    server = mirror()
    server.breaks = [300_000, 100]
    assert get(tmp_path, server) == CONTENT
    assert server.requested == [None, "bytes=300000-", "bytes=300100-"]


def test_next_call_resumes_the_download(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    server = mirror()
    server.breaks = [1000] * download.ATTEMPTS
    with pytest.raises(UserError, match="interrupted after 3,000 of 700,001 bytes"):
        get(tmp_path, server)
    assert (tmp_path / ".set.gz.part").read_bytes() == CONTENT[:3000]
    assert get(tmp_path, server) == CONTENT
    assert server.requested[-1] == "bytes=3000-"


def test_second_mirror_resumes_the_download_of_the_first(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    first, second = mirror(), mirror()
    first.breaks = [1000, 0, 0]
    assert get(tmp_path, first, second) == CONTENT
    assert second.requested == ["bytes=1000-"]


def test_server_without_ranges_sends_the_complete_file(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    server = mirror(ranges=False)
    (tmp_path / ".set.gz.part").write_bytes(CONTENT[:5000])
    assert get(tmp_path, server) == CONTENT
    assert server.requested == ["bytes=5000-"]


@pytest.mark.parametrize("invalid", [b"x" * 5000, b"x" * 700_001, b"x" * 800_000])
def test_invalid_partial_file_is_downloaded_again(
    tmp_path: Path, mirror: Callable[..., Mirror], invalid: bytes
) -> None:
    server = mirror()
    (tmp_path / ".set.gz.part").write_bytes(invalid)
    assert get(tmp_path, server) == CONTENT
    assert server.requested == [f"bytes={len(invalid)}-", None]


@pytest.mark.parametrize("bad", [{"status": 404}, {"status": 503}, {"content": b"<html>Log in first</html>"}])
def test_bad_mirror_is_skipped(tmp_path: Path, mirror: Callable[..., Mirror], bad: dict[str, int]) -> None:
    first, second = mirror(**bad), mirror()
    assert get(tmp_path, first, second) == CONTENT
    assert (first.requested, second.requested) == ([None], [None])


@pytest.mark.parametrize("length", ["abc", "-5", "1e9", "9" * 30, "\N{SUPERSCRIPT TWO}".encode().decode("latin1")])
def test_an_invalid_length_is_a_bad_mirror(tmp_path: Path, mirror: Callable[..., Mirror], length: str) -> None:
    first, second = mirror(), mirror()
    first.length = length
    assert get(tmp_path, first, second) == CONTENT
    with pytest.raises(UserError, match=r"its Content-Length is .* instead of a number"):
        get(tmp_path / "again", first)


def test_an_endless_download_ends(
    tmp_path: Path, mirror: Callable[..., Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", len(CONTENT))
    endless, right = mirror(CONTENT * 3), mirror()
    assert get(tmp_path, endless, right) == CONTENT
    with pytest.raises(UserError, match=r"it sends more than 700,001 bytes"):
        get(tmp_path / "again", endless)
    assert list((tmp_path / "again").iterdir()) == []


def test_redirects_from_https_to_http_are_refused() -> None:
    handler = download._NoDowngrade()
    request, headers = urllib.request.Request("https://here/a"), http.client.HTTPMessage()
    with pytest.raises(urllib.error.URLError, match="redirected from https to http://there"):
        handler.redirect_request(request, io.BytesIO(), 302, "Found", headers, "http://there/a")
    followed = handler.redirect_request(request, io.BytesIO(), 302, "Found", headers, "https://there/a")
    assert followed is not None
    assert followed.full_url == "https://there/a"


@pytest.mark.parametrize("location", ["/set.gz", "http://[bad/", "file:///etc/passwd", "http://127.0.0.1:99999999/a"])
def test_invalid_redirects_are_one_sentence(tmp_path: Path, mirror: Callable[..., Mirror], location: str) -> None:
    """A circle, an invalid address, a local file, an invalid port."""
    server, right = mirror(), mirror()
    server.location = location
    with pytest.raises(UserError, match="could not be downloaded") as error:
        get(tmp_path / "a", server)
    assert "\n" not in str(error.value)
    assert get(tmp_path / "b", server, right) == CONTENT


def test_no_file_is_downloaded_without_encryption() -> None:
    """The published checksums are MD5, which somebody who changes the file on its way can forge."""
    remotes = [*sources.CIFAR_REMOTES.values()]
    urls = [url for remote in remotes for url in remote.urls] + [
        u for s in sources.IDX_SETS.values() for u in s.mirrors
    ]
    assert len(urls) >= 7
    assert all(url.startswith("https://") for url in urls)


def test_message_if_all_mirrors_fail(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    wrong, missing, closed = mirror(b"other"), mirror(status=404), mirror()
    closed.close()
    with pytest.raises(UserError) as error:
        get(tmp_path, wrong, missing, closed)
    text = str(error.value)
    assert "wrong checksum 795f3202b17cb6bc3d4b771d8c6c9eaf" in text
    assert "404 Not Found" in text
    assert "Connection refused" in text
    assert f"copy set.gz into {tmp_path} manually, or give a folder that contains them with --data-dir" in text
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_raised_without_trying_other_mirrors(
    tmp_path: Path, mirror: Callable[..., Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_receive", full)
    first, second = mirror(), mirror()
    with pytest.raises(OSError, match="No space left"):
        get(tmp_path, first, second)


def test_unwritable_folder_is_rejected(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be downloaded into .*file/set .*--data-dir"):
        get(tmp_path / "file" / "set", mirror())


def test_concurrent_calls_download_once(tmp_path: Path, mirror: Callable[..., Mirror]) -> None:
    server = mirror()
    with ThreadPoolExecutor(2) as pool:
        assert [future.result() for future in [pool.submit(get, tmp_path, server) for _ in range(2)]] == [CONTENT] * 2
    assert server.requested == [None]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mnist", "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, "),
        ("cifar100", "cifar-100-binary.tar.gz"),
    ],
)
def test_nothing_is_downloaded_if_disabled(tmp_path: Path, name: str, files: str) -> None:
    with pytest.raises(UserError, match=f"There is no .* in .*{name}: copy {files}"):
        load(name, "train", data_dir=tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []


def test_mnist_is_downloaded(tmp_path: Path, mirror: Callable[..., Mirror], monkeypatch: pytest.MonkeyPatch) -> None:
    """All four files are downloaded at once, so that the test images are available later without a connection."""
    images = bytes.fromhex("00000803 00000001 00000001 00000002 0509")
    labels = bytes.fromhex("00000801 00000001 07")
    servers = [mirror(images), mirror(labels)] * 2
    by_name = {name: server.url for name, server in zip(sources.IDX_FILES, servers, strict=True)}

    def fetch_from_mirrors(remotes: list[Remote], *rest: object) -> None:
        files = [
            Remote(r.name, hashlib.md5(s.content).hexdigest(), (by_name[r.name],))
            for r, s in zip(remotes, servers, strict=True)
        ]
        fetch(files, *rest)  # type: ignore[arg-type]  # forwarded

    monkeypatch.setattr(sources, "fetch", fetch_from_mirrors)
    assert load("mnist", "train", data_dir=tmp_path).images.tolist() == [[[[5, 9]]]]
    assert len(list((tmp_path / "mnist").iterdir())) == 4
    assert load("mnist", "test", data_dir=tmp_path, download=False).labels.tolist() == [7]


def test_cifar_10_is_downloaded_from_the_second_mirror(
    tmp_path: Path, mirror: Callable[..., Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first mirror has a wrong file; the second closes the connection once."""
    batches = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    files = {name: bytes([label]) * 3073 for label, name in enumerate(batches)}
    files["batches.meta.txt"] = "\n".join("abcdefghij").encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    wrong, server = mirror(b"other"), mirror(packed.getvalue())
    server.breaks = [50]
    remote = Remote("cifar-10-binary.tar.gz", hashlib.md5(server.content).hexdigest(), (wrong.url, server.url))
    monkeypatch.setitem(sources.CIFAR_REMOTES, "cifar10", remote)
    assert load("cifar10", "train", data_dir=tmp_path).labels.tolist() == [0, 1, 2, 3, 4]
    assert load("cifar10", "test", data_dir=tmp_path, download=False).labels.tolist() == [5]
    assert (wrong.requested, server.requested) == ([None], [None, "bytes=50-"])
    assert [path.name for path in (tmp_path / "cifar10").iterdir()] == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mnist", ", ".join(sources.IDX_FILES)),
        ("fashion-mnist", ", ".join(sources.IDX_FILES)),
        ("cifar10", "cifar-10-binary.tar.gz"),
    ],
)
def test_files_are_listed_if_no_mirror_has_the_set(
    tmp_path: Path, mirror: Callable[..., Mirror], monkeypatch: pytest.MonkeyPatch, name: str, files: str
) -> None:
    wrong, closed = mirror(b"other"), mirror()
    closed.close()

    def fetch_from_mirrors(remotes: list[Remote], *rest: object) -> None:
        fetch([Remote(r.name, r.md5, (wrong.url, closed.url)) for r in remotes], *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sources, "fetch", fetch_from_mirrors)
    with pytest.raises(UserError) as error:
        load(name, "train", data_dir=tmp_path)
    text = str(error.value)
    assert "wrong checksum" in text
    assert "Connection refused" in text
    assert f"copy {files} into {tmp_path / name} manually, or give a folder that contains them with --data-dir" in text
    assert list((tmp_path / name).iterdir()) == []
