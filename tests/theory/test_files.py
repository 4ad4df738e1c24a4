"""Files give the bounds of the same matrix in memory, or are refused with file and line."""

from __future__ import annotations

import bz2
import gzip
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csc_matrix, csr_matrix, random, save_npz
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from theory import brute_force
from theory.brute_force import data_file
from variegrad.theory import SparseBound, conflict_degree, files, glm_bound, libsvm, rows, sparse_bound
from variegrad.theory.files import opened


def matrix(n: int = 60, d: int = 9) -> np.ndarray:
    generator = np.random.default_rng(0)
    X = generator.standard_normal((n, d)) * (generator.random((n, d)) < 0.4)
    X[:, d - 1] = np.arange(n) % 2
    return X


def as_counted_from_0(found: SparseBound, path: Path) -> SparseBound:
    """The bound of an array: a LIBSVM file counts its columns from 1, unless it uses index 0."""
    from_1 = ".svm" in path.name and "zero" not in path.name
    return replace(found, column=found.column - from_1)


def libsvm_bytes(X: np.ndarray, zero_based: bool = False) -> bytes:
    out = io.BytesIO()
    dump_svmlight_file(X, np.arange(len(X)) % 2, out, zero_based=zero_based)
    return out.getvalue()


def npy_bytes(X: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, X)
    return out.getvalue()


def npz_bytes(X: object) -> bytes:
    out = io.BytesIO()
    save_npz(out, X)
    return out.getvalue()


def dense_npz_bytes(X: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, X)
    return out.getvalue()


FILES = {
    "plain.svm": libsvm_bytes(matrix()),
    "zero.svm": libsvm_bytes(matrix(), zero_based=True),
    "text.svm.gz": gzip.compress(libsvm_bytes(matrix())),
    "text.svm.bz2": bz2.compress(libsvm_bytes(matrix())),
    "dense.npy": npy_bytes(matrix()),
    "fortran.npy": npy_bytes(np.asfortranarray(matrix())),
    "dense.npy.gz": gzip.compress(npy_bytes(matrix())),
    "rows.npz": npz_bytes(csr_matrix(matrix())),
    "columns.npz": npz_bytes(csc_matrix(matrix())),
    "array.npz": dense_npz_bytes(matrix()),
    "rows.npz.bz2": bz2.compress(npz_bytes(csr_matrix(matrix()))),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_bounds_of_the_matrix_in_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    # Text has 16 significant digits.
    assert glm_bound(path).bound == pytest.approx(glm_bound(matrix()).bound, rel=1e-12)
    assert as_counted_from_0(sparse_bound(str(path)), path) == sparse_bound(matrix())
    assert conflict_degree(path) == conflict_degree(matrix())


@pytest.mark.parametrize("name", FILES)
def test_small_blocks_change_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"X": glm_bound(matrix()), "sparse": sparse_bound(matrix(), paper_bound=True)}
    monkeypatch.setattr(rows, "BLOCK_ENTRIES", 10)
    monkeypatch.setattr(files, "BLOCK_ENTRIES", 10)
    monkeypatch.setattr(libsvm, "CHUNK_BYTES", 100)
    path = tmp_path / name
    path.write_bytes(FILES[name])
    assert glm_bound(path).bound == pytest.approx(whole["X"].bound, rel=1e-12)
    assert as_counted_from_0(sparse_bound(path, paper_bound=True), path) == whole["sparse"]


def test_temporary_files_are_gone_afterwards(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    path = tmp_path / "plain.svm"
    path.write_bytes(FILES["plain.svm"])
    with opened(path, scratch=tmp_path / "scratch"):
        assert list((tmp_path / "scratch").iterdir())
    assert not list((tmp_path / "scratch").iterdir())
    path.write_bytes(b"1 2:x\n")
    with pytest.raises(ValueError, match="line 1"), opened(path, scratch=tmp_path / "scratch"):
        pass
    assert not list((tmp_path / "scratch").iterdir())


GOOD = b"1 1:1 2:0.5\n-1 2:1\n"
MALFORMED = {
    "nan": (GOOD + b"1 3:nan\n", r"line 3: a value must be finite; found '3:nan'"),
    "infinity": (GOOD + b"1 3:-inf\n", r"line 3: a value must be finite; found '3:-inf'"),
    "overflow": (GOOD + b"1 3:1e999\n", r"line 3: a value must be finite; found '3:1e999'"),
    "negative index": (b"1 -3:1\n" + GOOD, r"line 1: an index must be between 0 and 2147483646; found -3"),
    "huge index": (
        GOOD + b"1 99999999999:1\n",
        r"line 3: an index must be between 0 and 2147483646; found 99999999999",
    ),
    "wrong order": (GOOD + b"\n# note\n1 3:1 2:1\n", r"line 5: indices must be in ascending order; found 2 after 3"),
    "twice": (GOOD + b"1 3:1 3:2\n", r"line 3: an index may occur only once; found 3 twice"),
    "no value": (GOOD + b"1 3:\n", r"line 3: a value must be a number; found '3:'"),
    "no colon": (GOOD + b"1 3 4:1\n", r"line 3: a feature must be written index:value; found '3'"),
    "fraction": (GOOD + b"1 3.5:1\n", r"line 3: a feature must be written index:value; found '3\.5:1'"),
    "underscore": (GOOD + b"1 3:1_0\n", r"line 3: a value must be a number; found '3:1_0'"),
    "no label": (GOOD + b"3:1 4:2\n", r"line 3: the label must be a number; found '3:1'"),
    "binary": (bytes(range(128, 256)), r"line 1: the label must be a number"),
    "only comments": (b"# nothing\n\n", "has no example"),
    "empty": (b"", "the file is empty"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_line_is_named(case: str, tmp_path: Path) -> None:
    content, message = MALFORMED[case]
    path = tmp_path / "data.svm"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        glm_bound(path)
    assert str(path) in str(caught.value)


def test_the_line_is_counted_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libsvm, "CHUNK_BYTES", 64)
    path = tmp_path / "data.svm"
    path.write_bytes(GOOD * 50 + b"1 5:1 4:1\n" + GOOD)
    with pytest.raises(ValueError, match="line 101: indices must be in ascending order"):
        glm_bound(path)


@pytest.mark.parametrize("name", ["text.svm.gz", "text.svm.bz2", "dense.npy.gz", "rows.npz.bz2"])
def test_a_truncated_stream_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name][: len(FILES[name]) // 2])
    with pytest.raises(ValueError, match="ends early"):
        glm_bound(path)


def test_a_truncated_text_is_named_with_the_line_it_breaks_off_in(tmp_path: Path) -> None:
    path = tmp_path / "cut.svm.gz"
    text = libsvm_bytes(matrix(5000))
    path.write_bytes(gzip.compress(text)[:-20_000])
    with pytest.raises(ValueError, match="ends early, in line") as caught:
        glm_bound(path)
    assert 100 < int(str(caught.value).split("in line ")[1].split(";")[0]) < 5000


@pytest.mark.parametrize("name", ["dense.npy", "fortran.npy", "rows.npz", "array.npz"])
def test_a_truncated_binary_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name][: len(FILES[name]) // 2])
    with pytest.raises(ValueError, match=r"ends early|damaged"):
        glm_bound(path)


@pytest.mark.parametrize("name", ["a.svm.gz", "a.svm.bz2", "a.npy", "a.npz"])
def test_a_file_that_is_not_what_its_name_says_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"these are not the bytes you are looking for" * 20)
    with pytest.raises(ValueError, match=name):
        glm_bound(path)


def test_a_pickled_array_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "objects.npy"
    np.save(path, np.array([[object()]]), allow_pickle=True)
    with pytest.raises(ValueError, match="must hold real numbers; found dtype object"):
        glm_bound(path)


def test_an_npy_file_of_one_dimension_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "vector.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"two dimensions, one row per example; found shape \(3,\)"):
        glm_bound(tmp_path / "vector.npy")


def test_nan_in_an_npy_file_is_named_by_its_row(tmp_path: Path) -> None:
    X = matrix()
    X[17, 3] = np.nan
    np.save(tmp_path / "nan.npy", X)
    with pytest.raises(ValueError, match=r"nan\.npy must be finite; row 17 \(counting from 0\) holds NaN or infinity"):
        sparse_bound(tmp_path / "nan.npy")


def test_columns_outside_an_npz_matrix_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    arrays = {"format": np.array(b"csr"), "shape": np.array([1, 2]), "data": np.ones(1)}
    np.savez(path, **arrays, indices=np.array([7], np.int32), indptr=np.array([0, 1], np.int32))
    with pytest.raises(ValueError, match="not a valid sparse matrix"):
        glm_bound(path)


def test_an_npz_file_with_unsorted_and_repeated_columns_is_read_as_scipy_reads_it(tmp_path: Path) -> None:
    X = csr_matrix((np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 0, 1, 1]), np.array([0, 3, 4])), shape=(2, 2))
    save_npz(tmp_path / "odd.npz", X)
    assert glm_bound(tmp_path / "odd.npz").bound == pytest.approx(glm_bound(X.toarray()).bound)
    assert sparse_bound(X) == sparse_bound(X.toarray())


def test_several_arrays_in_one_file_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.ones((2, 2)), b=np.ones((2, 2)))
    with pytest.raises(ValueError, match="must hold one array"):
        glm_bound(tmp_path / "two.npz")


def test_an_archive_cannot_write_outside_the_temporary_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "sly.npz", "w") as archive:
        archive.writestr("../../escaped.npy", FILES["dense.npy"])
    with pytest.raises((ValueError, OSError)):
        glm_bound(tmp_path / "sly.npz")
    assert not (tmp_path.parent / "escaped.npy").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        glm_bound(tmp_path / "absent.svm")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named_with_the_way_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plain.svm"
    path.write_bytes(FILES["plain.svm"])
    opener = Path.open

    def full(self: Path, mode: str = "r", *rest: object) -> object:
        return opener(Path("/dev/full") if mode == "wb" else self, mode, *rest)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ValueError, match="name a folder with more room as `scratch`"):
        glm_bound(path)


def test_one_row_has_bound_one_and_zero_rows_are_counted(tmp_path: Path) -> None:
    (tmp_path / "one.svm").write_bytes(b"1 4:2\n")
    assert glm_bound(tmp_path / "one.svm").bound == pytest.approx(1)
    (tmp_path / "zeros.svm").write_bytes(b"1 1:1\n0\n1 2:0\n")
    found = glm_bound(tmp_path / "zeros.svm")
    assert found.zero_rows == 2
    assert "2 of 3 rows are zero" in found.warnings[0]
    (tmp_path / "nothing.svm").write_bytes(b"1\n0\n1 2:0\n")
    with pytest.raises(ValueError, match="holds only zeros"):
        glm_bound(tmp_path / "nothing.svm")


def test_the_progress_reaches_the_end_of_every_pass(tmp_path: Path) -> None:
    path = tmp_path / "text.svm.gz"
    path.write_bytes(FILES["text.svm.gz"])
    seen: dict[str, tuple[int, int]] = {}
    glm_bound(path, progress=lambda stage, done, total: seen.__setitem__(stage, (done, total)))
    assert seen["reading rows"] == (60, 60)
    assert seen["reading the file"][1] == path.stat().st_size


@pytest.mark.parametrize(
    ("name", "shape", "low"), [("a9a.svm.gz", (32_561, 123), 2.2), ("news20_tfidf.svm.gz", (11_293, 42_254), 14.0)]
)
def test_real_data(name: str, shape: tuple[int, int], low: float) -> None:
    with opened(data_file(name)) as data:
        glm, sparse = glm_bound(data), sparse_bound(data, paper_bound=True)
    assert (glm.rows, glm.columns) == shape
    assert low < glm.low <= glm.high <= 1.01 * glm.low
    assert glm.failure_probability == 0
    assert glm.bound > sparse.bound >= sparse.paper_bound >= 1
    assert glm.centred_estimate > 3 * glm.bound


def test_conflicts_of_real_text_are_exact() -> None:
    path = data_file("news20_tfidf.svm.gz")
    found = conflict_degree(path)
    pattern, _ = load_svmlight_file(str(path))
    pattern.data[:] = 1
    n = pattern.shape[0]
    order = np.argsort(np.diff(pattern.indptr))
    # From above: every row shares nothing with some of the shortest. From below: one of the longest attains it.
    strangers = ((pattern[order[:300]] @ pattern.T).toarray() == 0).sum(axis=0)
    assert found <= n - 1 - strangers.min()
    conflicts = ((pattern[order[-64:]] @ pattern.T).toarray() > 0).sum(axis=1) - 1
    assert conflicts.max() == found == n - 1 - strangers.min()


def test_wide_random_data_in_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    X = random(400, 300, density=0.05, random_state=1).tocsr()
    monkeypatch.setattr(rows, "BLOCK_ENTRIES", 64)
    dense = X.toarray()
    assert sparse_bound(X, paper_bound=True) == sparse_bound(dense, paper_bound=True)
    assert conflict_degree(X) == brute_force.conflict_degree(dense)
