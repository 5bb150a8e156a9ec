"""What the operating system refuses: a sentence with a remedy and exit code 2, wherever it strikes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from action import cli, run_folder
from action.files import write_aside


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
    with pytest.raises(OSError) as raised:
        (tmp_path / "taken" / "below").mkdir()
    assert "taken" in refused(raised.value, capsys)


@pytest.fixture
def full(monkeypatch):
    """Files that are opened to be written aside stand on a full disk."""
    plain = Path.open

    def opened(self, mode="r", *rest, **named):
        return plain(Path("/dev/full") if self.name.startswith(".partial-") else self, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize("numbers", [10, 100_000, 3_000_000])
def test_a_full_disk_under_a_checkpoint_is_the_systems_error_with_the_files_name(numbers, full, tmp_path, capsys):
    with pytest.raises(OSError) as error:
        run_folder.save_checkpoint({"value": torch.ones(numbers)}, tmp_path / "latest.pt")
    written = refused(error.value, capsys)
    assert str(tmp_path / "latest.pt") in written and "make room on the disk" in written
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "writer", [lambda file: file.write_text("x" * 10), lambda file: file.write_bytes(b"x" * 10**6)]
)
def test_a_file_that_could_not_be_written_is_named(writer, tmp_path, capsys):
    with pytest.raises(OSError) as error, write_aside(tmp_path / "summary.json") as aside:
        aside.symlink_to("/dev/full")
        writer(aside)
    assert str(tmp_path / "summary.json") in refused(error.value, capsys)
    assert not list(tmp_path.iterdir())


def test_the_processors_memory_runs_out_in_pytorchs_words(capsys):
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert "out of memory" in refused(error.value, capsys)


def test_a_mistake_of_the_program_keeps_its_traceback():
    def main(arguments):
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        cli.run(main)


@pytest.mark.parametrize(("sink", "code"), [("> /dev/full", 2), ("| true", 1)])
def test_output_that_nobody_takes_is_known_at_the_exit(sink, code):
    program = "import time; from action.cli import run; run(lambda arguments: (time.sleep(0.3), print('a table')))"
    shell = f'set -o pipefail; {sys.executable} -c "{program}" {sink}'
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=environment)
    assert result.returncode == code
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr
