"""What a data folder holds, and downloads from a server of our own that cuts, ignores, refuses or sends rubbish."""

import gzip
import hashlib
import io
import json
import os
import struct
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mpi_resmtl.data import activity, digits, sources, standin
from mpi_resmtl.data.files import DataError
from mpi_resmtl.errors import UserError

HAR_ZIP = "human+activity+recognition+using+smartphones.zip"


@pytest.fixture(autouse=True)
def nothing_of_the_users(tmp_path, monkeypatch):
    """No data folder, cache, Kaggle token or proxy but what the test makes; no waiting between attempts."""
    for name in ("MPI_RESMTL_DATA", "KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPI_RESMTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(sources, "_PAUSE_SECONDS", 0)


@pytest.fixture
def small_standins(monkeypatch):
    monkeypatch.setattr(standin, "SUBJECTS", 3)
    monkeypatch.setattr(standin, "IMAGES", {"train": 80, "test": 70})


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def zipped(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zipped_folder(folder: Path) -> bytes:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "STAND-IN.txt"]
    return zipped({str(path.relative_to(folder.parent)): path.read_bytes() for path in paths})


# --- what is there


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    rows = sources.status(tmp_path / "nowhere")
    assert [(row.name, row.kind) for row in rows] == [(name, "absent") for name in sources.NAMES]
    assert sources.find("har", None).kind == "absent"


def test_what_make_wrote_is_called_a_stand_in(data, small_standins):
    standin.make("har", data)
    standin.make("digits", data)
    rows = sources.status(data)
    assert [(row.name, row.kind, row.checksum) for row in rows] == [
        (name, "stand-in", "unknown") for name in sources.NAMES
    ]
    assert [row.path.relative_to(data).as_posix() for row in rows] == [
        "UCI HAR Dataset",
        "MNIST/raw",
        "synthetic_digits",
    ]
    files = [path for path in rows[1].path.iterdir()]
    assert rows[1].bytes == sum(path.stat().st_size for path in files)


def test_a_stand_in_stays_one_when_it_is_zipped(data, small_standins):
    (folder,) = standin.make("har", data)
    content = zipped({f"UCI HAR Dataset/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*.txt")})
    other = data / "other"
    other.mkdir()
    (other / "UCI HAR Dataset.zip").write_bytes(content)
    assert sources.find("har", other).kind == "stand-in"


def test_a_set_of_unknown_checksum_is_judged_by_what_it_holds(data, small_standins, monkeypatch):
    (folder,) = standin.make("har", data)
    (folder / "STAND-IN.txt").unlink()
    row = sources.status(data)[0]
    assert (row.kind, row.checksum) == ("damaged", "")
    assert "rows, 7352 are published" in row.note
    assert sources.find("har", data).kind == "real"
    rows = {split: len((folder / split / f"y_{split}.txt").read_text().split()) for split in ("train", "test")}
    monkeypatch.setattr(activity, "PUBLISHED_ROWS", rows)
    monkeypatch.setattr(activity, "PUBLISHED_SUBJECTS", 3)
    row = sources.status(data)[0]
    assert (row.kind, row.checksum, row.note) == ("real", "unknown", "rows and subjects as published")


def test_the_checksum_of_a_folder_is_that_of_the_list_that_sha256sum_prints(data, small_standins):
    (folder,) = standin.make("har", data)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*_t*.txt"))
    assert len(names) == 6
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    assert sources.find("har", data).sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_mnist_has_one_checksum_packed_or_not(data, small_standins):
    standin.make("digits", data)
    packed = sources.find("mnist", data)
    for path in (data / "MNIST/raw").glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert sources.find("mnist", data).sha256 == packed.sha256


def test_a_damaged_set_is_shown_by_status_and_refused_by_find(data):
    (data / "synthetic_digits.zip").write_bytes(b"PK")
    row = sources.status(data)[2]
    assert (row.kind, row.path) == ("damaged", data / "synthetic_digits.zip")
    assert "damaged or cut short" in row.note
    with pytest.raises(DataError, match="damaged or cut short"):
        sources.find("synthetic-digits", data)


def test_an_unknown_data_set_is_met_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        sources.find("minst", None)
    with pytest.raises(UserError, match="unknown data set"):
        sources.fetch("cifar", Path("unused"))


def test_a_study_reads_the_folder_named_first(data, small_standins, monkeypatch, tmp_path):
    assert sources.data_dir() is None
    default = sources.default_dir()
    default.mkdir(parents=True)
    assert sources.data_dir() == default == sources.target_dir()
    standin.make("har", data)
    monkeypatch.setenv("MPI_RESMTL_DATA", str(data))
    assert sources.data_dir() == data == sources.target_dir()
    assert sources.target_dir(tmp_path) == tmp_path


def test_a_named_folder_without_any_data_set_is_an_error(data, monkeypatch):
    with pytest.raises(DataError, match=r"data \(--data-dir\): none of the data sets is here; expected UCI HAR"):
        sources.data_dir(data)
    monkeypatch.setenv("MPI_RESMTL_DATA", str(data / "nowhere"))
    with pytest.raises(DataError, match="nowhere: no such folder"):
        sources.data_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any folder")
def test_a_named_folder_that_cannot_be_read_is_an_error(data):
    data.chmod(0)
    with pytest.raises(DataError, match="the folder cannot be read"):
        sources.data_dir(data)


REAL = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no data in {REAL}")
def test_the_shared_data_are_known():
    har, mnist, synthetic = sources.status(REAL)
    if not {har.sha256, synthetic.sha256} <= set(sources._KNOWN):
        pytest.skip(f"other data in {REAL} than these are about")
    assert (har.kind, har.checksum) == ("real", "known")
    assert "features computed anew" in har.note
    assert (mnist.kind, mnist.checksum) == ("real", "known")
    assert (synthetic.kind, synthetic.checksum) == ("stand-in", "known")


# --- downloads


class Server(ThreadingHTTPServer):
    """Serves `files`; `faults` are taken one a request, from the front; `asked` records what came."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        asked_range = self.headers.get("Range")
        self.server.asked.append((self.path, asked_range, self.headers.get("Authorization")))
        fault = self.server.faults.pop(0) if self.server.faults else ""
        content = self.server.files.get(self.path)
        if fault.isdigit() or content is None:
            self.send_error(int(fault or 404))
            return
        start = 0
        if asked_range and fault != "ignores ranges":
            start = int(asked_range.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        if self.path.endswith(".gz"):
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if fault == "cuts":
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.close_connection = True
            return
        self.wfile.write(content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def mnist(server, monkeypatch):
    """A small MNIST on the server, whose checksums are the published ones for the length of a test."""
    random = np.random.default_rng(0)
    contents = {}
    for stem, count in (("train", 300), ("t10k", 100)):
        pictures = random.integers(0, 256, count * 784, dtype=np.uint8).tobytes()
        contents[f"{stem}-images-idx3-ubyte"] = struct.pack(">4I", 0x803, count, 28, 28) + pictures
        labels = bytes(random.integers(0, 10, count, dtype=np.uint8))
        contents[f"{stem}-labels-idx1-ubyte"] = struct.pack(">2I", 0x801, count) + labels
    packed = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in contents.items()}
    server.files = {f"/mnist/{name}": content for name, content in packed.items()}
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in packed.items()}
    monkeypatch.setattr(sources, "MNIST_MD5", md5)
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(sources, "MNIST_SHA256", sha256)
    return packed


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_mnist_is_fetched_as_published_and_then_known(server, mnist, data):
    paths = sources.fetch("mnist", data, f"{server.url}/mnist")
    assert {path.name: path.read_bytes() for path in paths} == mnist
    assert left(data) == [f"MNIST/raw/{name}" for name in sorted(mnist)]
    row = sources.status(data)[1]
    assert (row.kind, row.checksum) == ("real", "known")
    assert digits.mnist_size(data, "train") == 300


def test_what_is_there_and_right_is_not_fetched_again(server, mnist, data):
    first = sources.fetch("mnist", data, f"{server.url}/mnist")
    unpacked = first[0].with_suffix("")
    unpacked.write_bytes(gzip.decompress(first[0].read_bytes()))
    first[0].unlink()
    asked = len(server.asked)
    assert sources.fetch("mnist", data, f"{server.url}/mnist") == [unpacked, *first[1:]]
    assert len(server.asked) == asked


def test_something_else_under_the_name_is_left_alone(server, mnist, data):
    path = data / "MNIST/raw/train-images-idx3-ubyte"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(DataError, match="is there already and not the published file"):
        sources.fetch("mnist", data, f"{server.url}/mnist")
    assert path.read_bytes() == b"mine"


def test_a_cut_connection_is_taken_up_where_it_broke(server, mnist, data):
    server.faults = ["cuts", "cuts"]
    sources.fetch("mnist", data, f"{server.url}/mnist")
    size = len(mnist["train-images-idx3-ubyte.gz"])
    ranges = [asked[1] for asked in server.asked[:3]]
    assert ranges == [None, f"bytes={size // 2}-", f"bytes={size // 2 + (size - size // 2) // 2}-"]
    assert left(data) == [f"MNIST/raw/{name}" for name in sorted(mnist)]


def test_a_server_that_ignores_ranges_starts_the_file_anew(server, mnist, data):
    server.faults = ["cuts", "ignores ranges"]
    sources.fetch("mnist", data, f"{server.url}/mnist")
    assert left(data) == [f"MNIST/raw/{name}" for name in sorted(mnist)]


def test_after_the_last_attempt_the_next_call_goes_on(server, mnist, data):
    server.faults = ["cuts"] * 5
    with pytest.raises(DataError, match=r"connection lost .* bytes are kept, the same command goes on"):
        sources.fetch("mnist", data, f"{server.url}/mnist")
    assert left(data) == ["MNIST/raw/train-images-idx3-ubyte.gz.part"]
    sources.fetch("mnist", data, f"{server.url}/mnist")
    assert server.asked[5][1] is not None
    assert left(data) == [f"MNIST/raw/{name}" for name in sorted(mnist)]


def test_a_part_that_is_already_whole_takes_its_name(server, mnist, data):
    folder = data / "MNIST/raw"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte.gz.part").write_bytes(mnist["train-images-idx3-ubyte.gz"])
    sources.fetch("mnist", data, f"{server.url}/mnist")
    assert left(data) == [f"MNIST/raw/{name}" for name in sorted(mnist)]


def test_a_part_that_is_too_long_is_fetched_anew(server, mnist, data):
    folder = data / "MNIST/raw"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte.gz.part").write_bytes(bytes(10 + len(mnist["train-images-idx3-ubyte.gz"])))
    sources.fetch("mnist", data, f"{server.url}/mnist")
    assert left(data) == [f"MNIST/raw/{name}" for name in sorted(mnist)]


def test_a_wrong_file_is_removed_and_named(server, mnist, data):
    server.files["/mnist/train-labels-idx1-ubyte.gz"] = b"<html>sign in</html>"
    with pytest.raises(
        DataError, match=r"labels-idx1-ubyte\.gz: wrong checksum, expected md5:.*; what came was removed"
    ):
        sources.fetch("mnist", data, f"{server.url}/mnist")
    assert left(data) == ["MNIST/raw/train-images-idx3-ubyte.gz"]


@pytest.mark.parametrize(
    ("fault", "message"), [("404", "HTTP 404"), ("503", "no connection .*503.* or get https.* by hand")]
)
def test_a_server_that_refuses_leaves_nothing(server, mnist, data, fault, message):
    server.faults = [fault] * 5
    with pytest.raises(DataError, match=message) as error:
        sources.fetch("mnist", data, f"{server.url}/mnist")
    assert "\n" not in str(error.value)
    assert list(data.iterdir()) == []


def test_no_server_at_all_is_told_with_the_address_to_go_to_by_hand(data):
    with pytest.raises(
        DataError, match=r"no connection .* or get https://archive\.ics\.uci\.edu/dataset/240 by hand, into"
    ) as error:
        sources.fetch("har", data, "http://127.0.0.1:9")
    assert "(Failed to establish a new connection: [Errno 111] Connection refused)" in str(error.value)
    assert left(data) == []


def test_the_second_mirror_is_tried_when_the_first_fails(server, mnist, data, monkeypatch):
    monkeypatch.setattr(sources, "MNIST_MIRRORS", (f"{server.url}/gone", f"{server.url}/mnist"))
    sources.fetch("mnist", data)
    assert left(data) == [f"MNIST/raw/{name}" for name in sorted(mnist)]


def test_one_process_at_a_time_downloads_a_file(server, mnist, data):
    folder = data / "MNIST/raw"
    folder.mkdir(parents=True)
    part = folder / "train-images-idx3-ubyte.gz.part"
    with sources._locked(part), pytest.raises(DataError, match="another process is downloading this file"):
        sources.fetch("mnist", data, f"{server.url}/mnist")


@pytest.fixture
def har(server, tmp_path, small_standins, monkeypatch):
    """A small UCI HAR, zipped as UCI does, whose rows are the published ones for the length of a test."""
    (folder,) = standin.make("har", tmp_path / "made")
    rows = {split: len((folder / split / f"y_{split}.txt").read_text().split()) for split in ("train", "test")}
    monkeypatch.setattr(activity, "PUBLISHED_ROWS", rows)
    monkeypatch.setattr(activity, "PUBLISHED_SUBJECTS", 3)
    content = zipped({"UCI HAR Dataset.zip": zipped_folder(folder)})
    server.files = {f"/{HAR_ZIP}": content}
    return content


def test_har_is_fetched_and_can_be_read(server, har, data):
    assert sources.fetch("har", data, server.url) == [data / HAR_ZIP]
    assert left(data) == [HAR_ZIP]
    assert sources.status(data)[0].kind == "real"
    x, y = activity.read_subjects(data, [2])[2]
    np.testing.assert_array_equal(x, standin.activity(2)[0])
    np.testing.assert_array_equal(y, standin.activity(2)[1])
    asked = len(server.asked)
    assert sources.fetch("har", data, server.url) == [data / HAR_ZIP]
    assert len(server.asked) == asked


@pytest.mark.parametrize("wrong", ["rubbish", "cut", "rows"])
def test_har_has_no_known_checksum_and_is_judged_by_what_it_holds(server, har, data, wrong, monkeypatch):
    if wrong == "rows":
        monkeypatch.setattr(activity, "PUBLISHED_ROWS", {"train": 7352, "test": 2947})
    else:
        server.files[f"/{HAR_ZIP}"] = b"<html></html>" if wrong == "rubbish" else har[: len(har) // 2]
    with pytest.raises(DataError, match=f"{HAR_ZIP.replace('+', '.')}"):
        sources.fetch("har", data, server.url)
    assert left(data) == []


def test_a_stand_in_is_not_mistaken_for_what_was_fetched(server, har, data):
    standin.make("har", data)
    with pytest.raises(DataError, match="a stand-in is in the way"):
        sources.fetch("har", data, server.url)


@pytest.fixture
def kaggle(server, tmp_path, small_standins):
    folder = standin.make("digits", tmp_path / "made")[1]
    server.files = {f"/{sources.KAGGLE_NAME}": zipped_folder(folder)}
    return server


def test_synthetic_digits_need_a_token_and_the_user_is_told_how(kaggle, data):
    with pytest.raises(
        DataError, match=r"https://www\.kaggle\.com/settings .* by hand and put it into .*data as"
    ) as error:
        sources.fetch("synthetic-digits", data, kaggle.url)
    assert "\n" not in str(error.value)
    assert kaggle.asked == []


@pytest.mark.parametrize("place", ["token", "variables", "file"])
def test_synthetic_digits_are_fetched_with_the_users_token(kaggle, data, place, monkeypatch, tmp_path):
    if place == "token":
        monkeypatch.setenv("KAGGLE_API_TOKEN", "not-a-token")
    elif place == "variables":
        monkeypatch.setenv("KAGGLE_USERNAME", "nobody")
        monkeypatch.setenv("KAGGLE_KEY", "none")
    else:
        path = tmp_path / "home/.kaggle/kaggle.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"username": "nobody", "key": "none"}))
    assert sources.fetch("synthetic-digits", data, kaggle.url) == [data / "synthetic_digits.zip"]
    assert kaggle.asked[0][2] == ("Bearer not-a-token" if place == "token" else "Basic bm9ib2R5Om5vbmU=")
    assert digits.synthetic_size(data, "train") == 80


def test_a_refused_token_is_told_without_showing_it(kaggle, data, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "not-a-token")
    kaggle.faults = ["403"]
    with pytest.raises(DataError, match="Kaggle refused the token") as error:
        sources.fetch("synthetic-digits", data, kaggle.url)
    assert "not-a-token" not in str(error.value)
    assert left(data) == []


def test_a_token_file_that_is_none_is_named(data, monkeypatch, tmp_path):
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    (tmp_path / "kaggle.json").write_text("{}")
    with pytest.raises(DataError, match=r"kaggle\.json: expected Kaggle's file"):
        sources.fetch("synthetic-digits", data)
