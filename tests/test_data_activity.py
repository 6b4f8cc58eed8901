"""UCI HAR in its published layouts, its cache, and what is said of bad files."""

import io
import multiprocessing
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpi_resmtl.data import activity, cache, files
from mpi_resmtl.data.files import DataError

ZIP = "UCI HAR Dataset.zip"
PUBLISHED_ZIP = "human+activity+recognition+using+smartphones.zip"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("MPI_RESMTL_CACHE", str(folder))
    return folder


def small_set() -> dict[str, bytes]:
    """Three subjects: 1 and 3 in the training file, 2 and (again) 3 in the test file; x tells split and row."""
    rows = {"train": ([1, 3, 1, 3, 3], [1, 2, 3, 4, 5]), "test": ([2, 3, 2], [6, 1, 2])}
    contents = {}
    for split, (subjects, labels) in rows.items():
        x = np.linspace(-1, 1, activity.FEATURES) * np.arange(1, len(labels) + 1)[:, None] / 10
        x[:, 0] = (split == "test") * 0.5 + np.arange(len(labels)) / 100
        lines = (" " + " ".join(f"{value: .7e}".replace("e-0", "e-00") for value in row) for row in x)
        contents[f"{split}/X_{split}.txt"] = ("\n".join(lines) + "\n").encode()
        contents[f"{split}/y_{split}.txt"] = "".join(f"{label}\n" for label in labels).encode()
        contents[f"{split}/subject_{split}.txt"] = "".join(f"{subject}\n" for subject in subjects).encode()
    return contents


def zipped(contents: dict[str, bytes], above: str = "UCI HAR Dataset/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(above + name, content)
    return buffer.getvalue()


def write_folder(data_dir: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        path = data_dir / "UCI HAR Dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_zip(data_dir: Path, contents: dict[str, bytes]) -> None:
    (data_dir / ZIP).write_bytes(zipped(contents))


def write_published_zip(data_dir: Path, contents: dict[str, bytes]) -> None:
    inner = {
        ZIP: zipped({**contents, "train/Inertial Signals/body_acc_x_train.txt": b"1"}),
        "UCI HAR Dataset.names": b"1",
    }
    (data_dir / PUBLISHED_ZIP).write_bytes(zipped(inner, above=""))


@pytest.mark.parametrize("write", [write_folder, write_zip, write_published_zip])
def test_a_subject_has_its_training_rows_then_its_test_rows_in_order(tmp_path, write):
    write(tmp_path, small_set())
    for _ in ("parsed", "from the cache"):
        subjects = activity.read_subjects(tmp_path, [3, 1])
        assert list(subjects) == [3, 1]
        x, y = subjects[3]
        assert (x.dtype, x.shape, y.dtype) == (np.float32, (4, 561), np.int64)
        np.testing.assert_array_equal(x[:, 0], np.float32([0.01, 0.03, 0.04, 0.51]))
        np.testing.assert_array_equal(y, [1, 3, 4, 0])
        np.testing.assert_array_equal(subjects[1][1], [0, 2])


def test_numbers_are_those_that_numpy_reads(tmp_path):
    write_zip(tmp_path, small_set())
    expected = np.float32([line.split() for line in small_set()["test/X_test.txt"].splitlines()])
    np.testing.assert_array_equal(activity.read_subjects(tmp_path, [2])[2][0], expected[[0, 2]])


def test_what_macos_adds_to_a_zip_is_left_out(tmp_path):
    content = zipped({f"UCI HAR Dataset/{n}": c for n, c in small_set().items()}, above="")
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("__MACOSX/UCI HAR Dataset/train/y_train.txt", b"rubbish")
    (tmp_path / ZIP).write_bytes(buffer.getvalue())
    assert len(activity.read_subjects(tmp_path, [1])[1][1]) == 2


def test_the_cache_saves_parsing_and_reads_only_the_subjects_asked_for(tmp_path, monkeypatch):
    write_zip(tmp_path, small_set())
    before = activity.read_subjects(tmp_path, [2])[2]
    monkeypatch.setattr(activity, "_by_subject", lambda path: pytest.fail("parsed again"))
    read = []
    original = zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, name: read.append(name) or original(self, name))
    after = activity.read_subjects(tmp_path, [2])[2]
    np.testing.assert_array_equal(before[0], after[0])
    assert read == ["subjects.npy", "x2.npy", "y2.npy"]


def test_the_cache_follows_the_content_of_the_source(tmp_path):
    write_folder(tmp_path, small_set())
    activity.read_subjects(tmp_path, [1])
    write_folder(tmp_path, small_set() | {"train/y_train.txt": b"6\n6\n6\n6\n6\n"})
    np.testing.assert_array_equal(activity.read_subjects(tmp_path, [1])[1][1], [5, 5])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
@pytest.mark.filterwarnings("ignore:.*damaged cache")
def test_a_damaged_cache_never_changes_what_is_read(tmp_path, cache_folder, place, flip, cut):
    write_folder(tmp_path, small_set())
    expected = activity.read_subjects(tmp_path, [3])[3]
    (path,) = cache_folder.glob("*.npz")
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    content[at] ^= flip
    path.write_bytes(content[:at] if cut else content)
    found = activity.read_subjects(tmp_path, [3])[3]
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_a_damaged_cache_is_written_anew(tmp_path, cache_folder):
    write_zip(tmp_path, small_set())
    activity.read_subjects(tmp_path, [1])
    (path,) = cache_folder.glob("*.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.warns(UserWarning, match="damaged cache, built anew"):
        activity.read_subjects(tmp_path, [1])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_a_cache_that_cannot_be_written_costs_a_warning_only(tmp_path, monkeypatch):
    write_zip(tmp_path, small_set())
    monkeypatch.setenv("MPI_RESMTL_CACHE", str(tmp_path / ZIP))
    with pytest.warns(UserWarning, match="not cached"):
        assert len(activity.read_subjects(tmp_path, [1])[1][1]) == 2


def _rows_of_subject_3(data_dir: Path) -> int:
    return len(activity.read_subjects(data_dir, [3])[3][1])


def test_several_processes_may_fill_the_cache_at_once(tmp_path, cache_folder):
    write_zip(tmp_path, small_set())
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.map(_rows_of_subject_3, [tmp_path] * 8, chunksize=1) == [4] * 8
    assert [path.suffix for path in cache_folder.iterdir()] == [".npz"]


def test_the_cache_folder_is_the_platforms_unless_one_is_named(monkeypatch, tmp_path):
    assert cache.folder() == tmp_path / "cache"
    monkeypatch.delenv("MPI_RESMTL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder().name == "mpi-resmtl"


def replaced(name: str, old: bytes, new: bytes) -> dict[str, bytes]:
    contents = small_set()
    assert old in contents[name]
    return contents | {name: contents[name].replace(old, new, 1)}


def without_last_number(name: str) -> dict[str, bytes]:
    lines = [line.rsplit(None, 1)[0] for line in small_set()[name].splitlines()]
    return small_set() | {name: b"\n".join(lines)}


BAD = {
    "label above 6": (replaced("train/y_train.txt", b"3", b"7"), "train/y_train.txt, row 3 is 7, expected 1 to 6"),
    "label 0": (replaced("test/y_test.txt", b"6", b"0"), "test/y_test.txt, row 1 is 0, expected 1 to 6"),
    "label no number": (replaced("test/y_test.txt", b"6", b"six"), "test/y_test.txt: could not convert.*six"),
    "NaN": (replaced("train/X_train.txt", b"1.0000000e-001", b"nan"), "X_train.txt, row 1, column 561 is nan"),
    "infinite": (
        replaced("train/X_train.txt", b"1.0000000e-001", b"inf"),
        "column 561 is inf, expected a finite number",
    ),
    "no number": (replaced("test/X_test.txt", b"1.0000000e-001", b"1.0x"), "X_test.txt: could not convert.*1.0x"),
    "a short row": (replaced("test/X_test.txt", b"1.0000000e-001", b""), "X_test.txt: .*columns changed"),
    "560 columns": (without_last_number("test/X_test.txt"), "X_test.txt has 560 columns, expected 561"),
    "empty file": (small_set() | {"test/y_test.txt": b"\n"}, "test/y_test.txt is empty"),
    "fewer labels": (small_set() | {"test/y_test.txt": b"1\n2\n"}, "3 rows of X, 2 of y and 3 of subject"),
    "subject 0": (replaced("test/subject_test.txt", b"2", b"0"), "subject_test.txt, row 1 is 0, expected 1 to 10000"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_a_bad_file_is_named_with_what_was_expected(tmp_path, bad, write):
    contents, message = BAD[bad]
    write(tmp_path, contents)
    with pytest.raises(DataError, match=message) as error:
        activity.read_subjects(tmp_path, [1])
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_a_missing_file_is_named(tmp_path, write):
    contents = small_set()
    del contents["test/subject_test.txt"]
    write(tmp_path, contents)
    with pytest.raises(DataError, match=r"subject_test\.txt"):
        activity.read_subjects(tmp_path, [1])


def test_a_subject_without_rows_is_named_with_those_that_have_any(tmp_path):
    write_zip(tmp_path, small_set())
    for _ in ("parsed", "from the cache"):
        with pytest.raises(DataError, match="subject 4 has no rows; those that have any: 1-3"):
            activity.read_subjects(tmp_path, [1, 4])


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_zip_cut_short_is_named(tmp_path, part):
    content = zipped(small_set())
    (tmp_path / ZIP).write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match=f"{ZIP}: damaged or cut short, expected a whole zip"):
        activity.read_subjects(tmp_path, [1])


def test_an_inner_zip_cut_short_is_named(tmp_path):
    (tmp_path / PUBLISHED_ZIP).write_bytes(zipped({ZIP: zipped(small_set())[:500]}, above=""))
    with pytest.raises(DataError, match="cut short"):
        activity.read_subjects(tmp_path, [1])


def test_a_damaged_member_of_a_zip_is_named(tmp_path):
    content = bytearray(zipped(small_set()))
    content[2000] ^= 255
    (tmp_path / ZIP).write_bytes(content)
    with pytest.raises(DataError, match=r"train/X_train\.txt: damaged or cut short"):
        activity.read_subjects(tmp_path, [1])


def test_a_zip_of_something_else_is_named(tmp_path):
    (tmp_path / ZIP).write_bytes(zipped({"a.txt": b"1"}, above="holiday/"))
    with pytest.raises(DataError, match="the zip holds no folder UCI HAR Dataset/"):
        activity.read_subjects(tmp_path, [1])


def test_a_member_that_would_unpack_to_too_much_is_refused_unread(tmp_path, monkeypatch):
    write_zip(tmp_path, small_set())
    monkeypatch.setattr(activity, "_LARGEST_FILE", 1000)
    with pytest.raises(DataError, match="more than the 1000 expected"):
        activity.read_subjects(tmp_path, [1])


def test_an_inner_zip_that_would_unpack_to_too_much_is_refused_unread(tmp_path, monkeypatch):
    write_published_zip(tmp_path, small_set())
    monkeypatch.setattr(files, "LARGEST_ZIP_IN_A_ZIP", 1000)
    with pytest.raises(DataError, match="more than the 1000 expected"):
        activity.read_subjects(tmp_path, [1])


def test_names_that_climb_out_of_a_zip_reach_no_file(tmp_path):
    (tmp_path / "secret").write_text("1\n")
    contents = {f"../../{name}": content for name, content in small_set().items()}
    write_zip(tmp_path, contents)
    with pytest.raises(DataError, match="is missing"):
        activity.read_subjects(tmp_path, [1])
    assert {path.name for path in tmp_path.iterdir()} == {"secret", ZIP}


def test_an_empty_folder_is_told_what_it_should_hold(tmp_path):
    with pytest.raises(
        DataError, match=r"no UCI HAR data set here; expected one of: UCI HAR Dataset, UCI HAR Dataset\.zip"
    ):
        activity.read_subjects(tmp_path, [1])


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        activity.read_subjects(tmp_path / "nowhere", [1])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: expected a folder"):
        activity.read_subjects(tmp_path / "file", [1])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any folder")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    with pytest.raises(DataError, match="closed: the folder cannot be read"):
        activity.read_subjects(closed, [1])


def test_a_folder_that_the_system_refuses_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DataError, match=r"the folder cannot be read \(Permission denied\)"):
        activity.read_subjects(tmp_path, [1])


REAL = Path(os.environ.get("MPI_RESMTL_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.mark.skipif(
    not any((REAL / name).exists() for name in activity.NAMES),
    reason=f"no UCI HAR data set in {REAL} ($MPI_RESMTL_DATA)",
)
def test_the_real_set_has_the_published_rows():
    subjects = activity.read_subjects(REAL, range(1, 31))
    rows = [len(y) for _, y in subjects.values()]
    assert (sum(rows), min(rows), max(rows)) == (10299, 281, 409)
    for x, y in subjects.values():
        assert x.shape == (len(y), 561)
        assert np.abs(x).max() <= 1
        np.testing.assert_array_equal(np.unique(y), range(6))
    activity.check_published(activity.files.require(REAL, activity.NAMES, activity.TITLE))
