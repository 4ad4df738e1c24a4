"""LIBSVM files are read exactly, or refused by name, with the line or example that is wrong."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import zstandard
from torch.utils.data import TensorDataset

from variegrad.problems import load
from variegrad.problems.libsvm import as_dataset, read_libsvm, stable_step_size
from variegrad.problems.sparse_rows import SparseRows

TEXT = b"+1 1:0.5 3:2\n-1 2:1\n# a comment\n+1\n-1 1:-1 2:4 3:1 # another\n"
DENSE = torch.tensor([[0.5, 0, 2], [0, 1, 0], [0, 0, 0], [-1, 4, 1]])


def zipped(**files: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


PACKED = {
    "a.svm": bytes,
    "a.svm.gz": gzip.compress,
    "a.svm.bz2": bz2.compress,
    "a.svm.xz": lzma.compress,
    "a.svm.zst": lambda text: zstandard.ZstdCompressor().compress(text),
    "a.zip": lambda text: zipped(text=text),
    "a": bytes,
    "named-otherwise.gz": bytes,
    "named-otherwise.txt": gzip.compress,
}


@pytest.mark.parametrize(("name", "pack"), PACKED.items())
def test_features_as_they_stand_and_classes_from_zero(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(pack(TEXT))
    features, labels = read_libsvm(tmp_path / name)
    assert torch.equal(torch.from_numpy(features.toarray()), DENSE)
    assert labels.tolist() == [1, 0, 1, 0]
    assert labels.dtype == torch.int64


def test_a_header_line_gives_the_columns(tmp_path: Path) -> None:
    for text, columns in ((b"2 6 4\n1 0:1 5:0.5\n0 1:1 2:2\n", 6), (b"2 5\n1 1:1 5:0.5\n0 2:1\n", 5)):
        (tmp_path / "headed").write_bytes(text)
        features, labels = read_libsvm(tmp_path / "headed")
        assert features.shape == (2, columns)
        assert features[0, 0] == 1
        assert labels.tolist() == [1, 0]


def test_blocks_of_different_widths_are_one_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("variegrad.theory.libsvm.CHUNK_BYTES", 16)
    (tmp_path / "a").write_bytes(TEXT * 20)
    features, labels = read_libsvm(tmp_path / "a")
    assert torch.equal(torch.from_numpy(features.toarray()), DENSE.repeat(20, 1))
    assert labels.tolist() == [1, 0, 1, 0] * 20


def test_indices_may_start_at_zero(tmp_path: Path) -> None:
    (tmp_path / "zero").write_bytes(b"2 0:1 2:3\n7 1:1\n5 2:1\n")
    features, labels = read_libsvm(tmp_path / "zero")
    assert features.toarray().tolist() == [[1, 0, 3], [0, 1, 0], [0, 0, 1]]
    assert labels.tolist() == [0, 2, 1]


MALFORMED = [
    ("empty", "a", b"", "has no example"),
    ("comments only", "a", b"# nothing\n\n", "has no example"),
    ("text", "a", b"1 1:2\nhello world\n", "line 2: the label must be a number; found 'hello'"),
    ("no value", "a", b"1 1:2\n0 1:1\n1 1:\n", "line 3: a value must be a number; found '1:'"),
    ("negative index", "a", b"1 1:2\n0 -1:1\n", "line 2: an index must be between 0 and 2147483646; found -1"),
    ("wrong order", "a", b"1 3:2 2:1\n0 1:1\n", "line 1: indices must be in ascending order; found 2 after 3"),
    ("duplicate index", "a", b"1 1:2\n0 2:1 2:1\n", "line 2: an index may occur only once; found 2 twice"),
    ("huge index", "a", b"1 1:2\n0 99999999999999999999:1\n", "line 2: an index must be between"),
    ("several labels", "a", b"1 2:1\n1,2 1:2\n", "needs one label per example; example 2 has 2"),
    ("no label", "a", b"1 2:1\n 1:2\n", "needs one label per example; example 2 has 0"),
    ("NaN", "a", b"1 1:2\n0 1:1 2:nan\n1 1:1\n", "line 2: a value must be finite; found '2:nan'"),
    ("infinite", "a", b"1 1:2\n0 1:1\n1 1:inf\n", "line 3: a value must be finite; found '1:inf'"),
    ("too large for float32", "a", b"1 1:1e39\n0 1:1\n", "example 1 of 2 has 1e\\+39 at index 1 of the file"),
    ("too large, from 0", "a", b"1 0:1\n0 3:1e39\n", "example 2 of 2 has 1e\\+39 at index 3 of the file"),
    ("fractional label", "a", b"1 1:2\n0.5 1:1\n", "labels must be whole numbers.*example 2 of 2 has 0.5"),
    ("NaN label", "a", b"nan 1:2\n1 1:1\n", "example 1 of 2 has nan"),
    ("infinite label", "a", b"1 1:2\ninf 1:1\n", "example 2 of 2 has inf"),
    ("one class", "a", b"3 1:2\n3 1:1\n", "at least two classes; all labels are 3"),
    ("binary", "a", bytes(range(256)), "is not text"),
    ("packed binary", "a.gz", gzip.compress(bytes(4000)), "is not text"),
    ("CSV", "a.csv", b"1,0.5,3\n0,2,1\n", "looks like CSV.*np.save"),
    ("header of more examples", "a", b"3 6 4\n1 0:1\n0 1:1\n", "header announces 3 examples; found 2"),
    ("header of fewer columns", "a", b"2 2 4\n1 0:1\n0 5:1\n", "header announces 2 columns; index 5 occurs"),
    ("truncated gzip", "a.gz", gzip.compress(TEXT * 999)[:-20], "ends early|damaged"),
    ("damaged gzip", "a.gz", gzip.compress(TEXT)[:12] + b"\xff" * 20, "ends early|damaged"),
    ("truncated bzip2", "a.bz2", bz2.compress(TEXT * 999)[:-20], "ends early"),
    ("truncated xz", "a.xz", lzma.compress(TEXT * 999)[:-20], "ends early|damaged"),
    ("archive of two", "a.zip", zipped(a=TEXT, b=TEXT), "must hold one file; found 2: a, b"),
]


@pytest.mark.parametrize(
    ("name", "content", "complaint"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED]
)
def test_malformed_file_is_named_with_what_is_wrong(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as refusal:
        read_libsvm(path)
    assert str(refusal.value).startswith(str(path))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_dense_and_sparse_data_sets_hold_the_same_examples(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(TEXT)
    features, labels = read_libsvm(tmp_path / "a")
    dense, sparse = as_dataset(features, labels), as_dataset(features, labels, dense_bytes=47)
    assert isinstance(dense, TensorDataset)
    assert isinstance(sparse, SparseRows)
    everything = torch.arange(4)
    assert torch.equal(dense[everything][0], sparse[everything][0])
    assert torch.equal(dense[everything][1], sparse[everything][1])


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize(("labels", "outputs"), [([0, 1, 1, 0, 1], 1), ([0, 1, 2, 0, 1], 3)])
def test_the_default_step_size_is_the_inverse_of_a_batchs_largest_curvature(
    tmp_path: Path, labels: list[int], outputs: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 3 * torch.randn(5, 2, generator=generator)
    (tmp_path / "a").write_text("".join(f"{y} 1:{a} 2:{b}\n" for y, (a, b) in zip(labels, rows.tolist(), strict=True)))
    problem = load(str(tmp_path / "a"))
    features, _ = read_libsvm(tmp_path / "a")
    gamma = stable_step_size(features, max(labels) + 1, batch_size=1)
    assert gamma == pytest.approx(64 * problem.step_size)
    assert problem.model(rows).shape == (5, outputs)
    parameters = list(problem.model.parameters())
    for parameter in parameters:
        torch.nn.init.zeros_(parameter)  # curvature is largest there
    largest = 0.0
    for index in range(5):
        loss = problem.losses(problem.model, problem.train[torch.tensor([index])]).sum()
        gradient = flat(torch.autograd.grad(loss, parameters, create_graph=True))
        hessian = torch.stack([flat(torch.autograd.grad(entry, parameters, retain_graph=True)) for entry in gradient])
        largest = max(largest, float(torch.linalg.eigvalsh(hessian)[-1]))
    assert 0.6 / gamma < largest <= (1 + 1e-5) / gamma  # equal for two classes, 2/3 at the uniform answer of three


def test_a9a_is_the_published_one(real_data: Path) -> None:
    problem = load("a9a", data_root=real_data)
    assert isinstance(problem.train, TensorDataset)
    features, labels = problem.train.tensors
    assert features.shape == (32_561, 123)
    assert torch.bincount(labels).tolist() == [24_720, 7_841]
    assert problem.losses(problem.model, (features, labels)).shape == (32_561,)


def test_news20_stays_sparse(real_data: Path) -> None:
    problem = load("sparse/news20_tfidf.svm.gz", data_root=real_data, max_examples=200)
    assert isinstance(problem.train, SparseRows)
    features, labels = problem.train[torch.arange(10)]
    assert features.shape == (10, 42_254)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(10), rtol=1e-4, atol=0)
    assert problem.losses(problem.model, (features, labels)).shape == (10,)
