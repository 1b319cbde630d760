"""Saved arrays: what is written comes back, and a damaged file is refused with its remedy."""

from __future__ import annotations

import numpy as np
import pytest

from odescale import CheckpointError
from odescale.files import read_npz, write_npz

ARRAYS = {"loss": np.linspace(1.0, 0.0, 2000) ** 2, "code": np.asarray(0)}
HEADER = {"format": "test-1", "meta": {"solver": "tsit5", "rtol": 1e-8, "size": np.float64(2.0), "list": [1, None]}}


def test_arrays_and_header_come_back_bit_for_bit(tmp_path):
    path = write_npz(tmp_path / "new" / "file.npz", ARRAYS, HEADER)
    arrays, header = read_npz(path, "test-1")
    assert set(arrays) == set(ARRAYS)
    np.testing.assert_array_equal(arrays["loss"], ARRAYS["loss"])
    assert header["meta"] == {"solver": "tsit5", "rtol": 1e-8, "size": 2.0, "list": [1, None]}
    assert [p.name for p in path.parent.iterdir()] == ["file.npz"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = write_npz(tmp_path / "file.npz", ARRAYS, HEADER)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="complete test-1 file") as error:
        read_npz(path, "test-1")
    assert "\n" not in str(error.value)


def test_a_flipped_byte_is_refused(tmp_path):
    path = write_npz(tmp_path / "file.npz", ARRAYS, HEADER)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(bytes(whole))
    with pytest.raises(CheckpointError):
        read_npz(path, "test-1")


@pytest.mark.parametrize("content", [b"", b"step,loss\n1,2\n", b"PK\x03\x04 not an archive"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_npz(path, "test-1")


def test_missing_files_folders_and_other_formats_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nothing at"):
        read_npz(tmp_path / "none.npz", "test-1")
    with pytest.raises(CheckpointError):
        read_npz(tmp_path, "test-1")
    np.savez(tmp_path / "plain.npz", loss=np.ones(3))
    with pytest.raises(CheckpointError):
        read_npz(tmp_path / "plain.npz", "test-1")
    path = write_npz(tmp_path / "file.npz", ARRAYS, HEADER)
    with pytest.raises(CheckpointError, match="test-2"):
        read_npz(path, "test-2")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_npz(tmp_path / "file.npz", ARRAYS, HEADER)

    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("no numbers")

    with pytest.raises(RuntimeError):
        write_npz(path, {"loss": Broken()}, HEADER)
    assert [p.name for p in tmp_path.iterdir()] == ["file.npz"]
    np.testing.assert_array_equal(read_npz(path, "test-1")[0]["loss"], ARRAYS["loss"])
