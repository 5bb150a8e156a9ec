"""What the operating system refuses: a sentence with a remedy and exit code 2, wherever it strikes."""

import errno
import os

import pytest
import torch

from action import cli


def refused(error, capsys):
    def main(arguments):
        raise error

    with pytest.raises(SystemExit) as left:
        cli.run(main)
    assert left.value.code == 2
    written = capsys.readouterr().err
    assert written.startswith("error: ") and written.count("\n") == 1
    return written


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "make room on the disk"),
        (errno.EROFS, "can be written"),
        (errno.EACCES, "allow this user"),
        (errno.ENOTDIR, "a file stands where a folder is needed"),
        (errno.EMFILE, "open files"),
        (errno.EIO, "check that the path"),
    ],
)
def test_an_error_of_the_system_names_the_file_and_a_remedy(number, words, capsys):
    written = refused(OSError(number, os.strerror(number), "/some/file.pt"), capsys)
    assert "/some/file.pt" in written and words in written


@pytest.mark.parametrize("error", [MemoryError("7 GiB"), torch.OutOfMemoryError("CUDA out of memory")])
def test_too_little_memory_names_a_remedy(error, capsys):
    assert "smaller batches" in refused(error, capsys)


def test_a_real_file_in_the_way(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    error = pytest.raises(OSError, (tmp_path / "taken" / "below").mkdir).value
    assert "taken" in refused(error, capsys)
