"""Stand-ins: determined by seed and number alone, shaped and scaled like the data, as hard as they have to be."""

import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpi_resmtl.data import activity, digits, standin
from mpi_resmtl.data.files import DataError
from mpi_resmtl.errors import UserError

GROUPS = ("mnist", "synthetic-digits")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MPI_RESMTL_CACHE", str(tmp_path / "cache"))


def test_activity_has_thirty_uneven_subjects_of_correlated_features_in_range():
    subjects = [standin.activity(subject) for subject in range(1, 31)]
    rows = [len(y) for _, y in subjects]
    assert min(rows) >= 281
    assert max(rows) <= 409
    assert len(set(rows)) > 15
    for x, y in subjects:
        assert (x.dtype, x.shape, y.dtype) == (np.float32, (len(y), 561), np.int64)
        assert np.abs(x).max() <= 1
        assert np.bincount(y).min() >= 20
        assert len(np.bincount(y)) == 6
    x = np.concatenate([x for x, _ in subjects])
    assert 0.2 < np.abs(np.corrcoef(x.T)).mean() < 0.6


def test_subjects_and_seeds_differ_and_the_same_ones_do_not():
    first = standin.activity(4, seed=3)
    standin.activity(5, seed=3)
    np.testing.assert_array_equal(first[0], standin.activity(4, seed=3)[0])
    assert not np.array_equal(first[0][:200], standin.activity(4, seed=4)[0][:200])
    assert not np.array_equal(first[0][:200], standin.activity(5, seed=3)[0][:200])


@pytest.mark.parametrize("subject", [0, 31])
def test_other_subjects_have_no_rows(subject):
    with pytest.raises(DataError, match=f"no rows of subject {subject}, expected 1 to 30"):
        standin.activity(subject)


def softmax_accuracy(x: np.ndarray, y: np.ndarray, rate: float, steps: int = 1050) -> float:
    """Test accuracy of the activity study's recipe for an agent by itself: SGD 0.01, batch 10, at `rate`."""
    random = np.random.default_rng(0)
    order = random.permutation(len(y))
    x = np.hstack([x, np.ones((len(x), 1), np.float32)])
    train, test = order[: len(y) * 3 // 4], order[len(y) * 3 // 4 :]
    weight = random.uniform(-1, 1, (6, 562)) / np.sqrt(561)
    for _ in range(int(steps * rate)):
        rows = random.choice(train, 10, replace=False)
        score = x[rows] @ weight.T
        gradient = np.exp(score - score.max(1, keepdims=True))
        gradient /= gradient.sum(1, keepdims=True)
        gradient[np.arange(10), y[rows]] -= 1
        weight -= 0.01 * gradient.T @ x[rows] / 10
    return float(((x[test] @ weight.T).argmax(1) == y[test]).mean())


def test_who_trains_a_tenth_as_often_learns_activity_visibly_worse():
    subjects = [standin.activity(subject) for subject in range(1, 11)]
    often = np.mean([softmax_accuracy(x, y, 1.0) for x, y in subjects])
    seldom = np.mean([softmax_accuracy(x, y, 0.1) for x, y in subjects])
    assert 0.92 < often < 0.995
    assert 0.7 < seldom < often - 0.05


@pytest.mark.parametrize(("group", "low"), [("mnist", 0), ("synthetic-digits", -1)])
def test_digits_are_shaped_and_scaled_like_the_data(group, low):
    x, y = standin.digits(group, "train", range(2000))
    assert (x.dtype, x.shape, y.dtype) == (np.float32, (2000, 28, 28), np.int64)
    assert x.min() >= low
    assert x.max() <= 1
    assert np.bincount(y).min() > 150
    assert len(np.bincount(y)) == 10
    gray = (x - low) / (1 - low)
    # The real ones have mean and spread .131, .308 and .457, .220.
    mean, spread = (0.13, 0.31) if group == "mnist" else (0.45, 0.24)
    assert gray.mean() == pytest.approx(mean, abs=0.02)
    assert gray.std() == pytest.approx(spread, abs=0.02)


@settings(max_examples=20, deadline=None)
@given(group=st.sampled_from(GROUPS), indices=st.lists(st.integers(0, 2**31), min_size=1, max_size=12))
def test_an_image_does_not_depend_on_the_others_asked_for(group, indices):
    x, y = standin.digits(group, "test", indices, seed=7)
    for place in {0, len(indices) // 2, len(indices) - 1}:
        alone, label = standin.digits(group, "test", [indices[place]], seed=7)
        np.testing.assert_array_equal(x[place], alone[0])
        assert y[place] == label[0]


@pytest.mark.parametrize("group", GROUPS)
def test_an_image_does_not_depend_on_the_batch_it_falls_in(group):
    whole, _ = standin.digits(group, "train", range(600))
    np.testing.assert_array_equal(whole[250:300], standin.digits(group, "train", range(250, 300))[0])
    order = np.random.default_rng(0).permutation(600)
    np.testing.assert_array_equal(whole[order], standin.digits(group, "train", order)[0])


@pytest.mark.parametrize("group", GROUPS)
def test_train_test_and_seeds_share_no_image(group):
    images = [standin.digits(group, split, range(50), seed)[0] for split in ("train", "test") for seed in (0, 1)]
    flat = np.concatenate(images).reshape(200, -1)
    assert len(np.unique(flat, axis=0)) == 200


def test_no_images_are_asked_for_and_none_come():
    x, y = standin.digits("mnist", "train", [])
    assert (x.shape, y.shape) == ((0, 28, 28), (0,))
    with pytest.raises(DataError, match="no image -1, expected 0 or more"):
        standin.digits("mnist", "train", [-1])


def test_another_process_makes_the_same():
    program = (
        "from mpi_resmtl.data import standin; import zlib;"
        "print(*[zlib.crc32(standin.digits(g, 'train', [9, 4])[0].tobytes()) for g in ('mnist', 'synthetic-digits')],"
        "zlib.crc32(standin.activity(3)[0].tobytes()))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    images = [standin.digits(group, "train", [9, 4])[0] for group in GROUPS]
    expected = [zlib.crc32(array.tobytes()) for array in (*images, standin.activity(3)[0])]
    assert [int(number) for number in run.stdout.split()] == expected


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(standin, "SUBJECTS", 4)
    monkeypatch.setattr(standin, "IMAGES", {"train": 90, "test": 80})


def test_har_as_made_is_read_back_to_the_bit(tmp_path, small):
    (folder,) = standin.make("har", tmp_path, seed=5)
    assert (folder / "STAND-IN.txt").read_text().startswith("Generated by mpi-resmtl")
    for subject, (x, y) in activity.read_subjects(tmp_path, [1, 2, 3, 4]).items():
        expected = standin.activity(subject, seed=5)
        np.testing.assert_array_equal(x, expected[0])
        np.testing.assert_array_equal(y, expected[1])


def test_mnist_as_made_is_read_back_to_the_bit(tmp_path, small):
    standin.make("digits", tmp_path, seed=5)
    for split, count in standin.IMAGES.items():
        assert digits.mnist_size(tmp_path, split) == count
        for found, expected in zip(
            digits.read_mnist(tmp_path, split, range(count)),
            standin.digits("mnist", split, range(count), seed=5),
            strict=True,
        ):
            np.testing.assert_array_equal(found, expected)


def test_synthetic_digits_as_made_are_read_back_but_for_jpeg(tmp_path, small):
    standin.make("digits", tmp_path, seed=5)
    expected, labels = standin.digits("synthetic-digits", "train", range(90), seed=5)
    found, y = digits.read_synthetic(tmp_path, "train", range(90))
    order = np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(y, labels[order])
    assert np.abs(found - expected[order]).mean() < 0.05


def test_nothing_that_is_there_is_overwritten(tmp_path, small):
    standin.make("digits", tmp_path)
    with pytest.raises(DataError, match="MNIST/raw: is there already"):
        standin.make("digits", tmp_path)
    (tmp_path / "UCI HAR Dataset.zip").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"UCI HAR Dataset\.zip: is there already"):
        standin.make("har", tmp_path)


def test_a_folder_half_made_is_removed(tmp_path, small, monkeypatch):
    def fail(subject, seed):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(standin, "activity", fail)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        standin.make("har", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_stand_in_is_met_with_the_nearest_name(tmp_path):
    with pytest.raises(UserError, match="did you mean 'digits'"):
        standin.make("digit", tmp_path)
