"""Nothing is half written, and nothing that is there is replaced unasked."""

import os
import time
from pathlib import Path

import pytest

from action import compare, crossval, predict, prepare, train
from action.data.phantom import write_phantom
from action.errors import InputError
from action.files import ABANDONED, aside_of, check_targets, check_writable, final_name, remove_abandoned, write_aside


def test_content_and_name_are_on_disk_before_the_block_ends(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append(os.fstat(descriptor).st_ino), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("rename"), replace(old, new)))
    with write_aside(tmp_path / "a.txt") as aside:
        aside.write_text("new")
    assert done == [(tmp_path / "a.txt").stat().st_ino, "rename", tmp_path.stat().st_ino]
    assert final_name(aside.name) == "a.txt" and final_name("a.txt") is None


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), write_aside(tmp_path / "a.txt") as aside:
        aside.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_what_a_power_cut_may_spoil_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", None)
    with write_aside(tmp_path / "a.txt", flushed=False) as aside:
        aside.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def left(folder, name, age, *, files=0):
    """What a process has left of a file, or of a folder with so many files in it, that many seconds ago."""
    path = folder / f".partial-1-{name}"
    parts = [path, path / "sub", *(path / "sub" / str(number) for number in range(files))] if files else [path]
    for part in parts:
        if files and part in parts[:2]:
            part.mkdir()
        else:
            part.write_text("x")
    for part in parts:
        os.utime(part, (time.time() - age,) * 2)
    return path


def test_what_was_left_long_ago_is_removed_and_nothing_else(tmp_path):
    gone = [left(tmp_path, "a.txt", 2 * ABANDONED), left(tmp_path, "folder", 2 * ABANDONED, files=2)]
    kept = [
        left(tmp_path, "b.txt", ABANDONED / 2),
        left(tmp_path, "other.txt", 2 * ABANDONED),
        left(tmp_path, "busy", 2 * ABANDONED, files=2),
        tmp_path / ".partial-2-a.txt",
        tmp_path / "a.txt",
    ]
    os.utime(kept[2] / "sub" / "1")  # is being written, though its folder has not changed for long
    kept[3].symlink_to(left(tmp_path, "target", 2 * ABANDONED))
    kept[4].write_text("x")
    remove_abandoned(tmp_path, {"a.txt", "b.txt", "folder", "busy"}.__contains__)
    assert not any(path.exists() for path in gone) and all(path.exists() for path in kept)
    remove_abandoned(tmp_path / "absent", lambda name: True)


def test_a_phantom_clears_what_one_before_it_left(tmp_path):
    old, other = (left(tmp_path, name, 2 * ABANDONED, files=1) for name in ("phantom", "hearts"))
    write_phantom(tmp_path / "phantom", 4, 0)
    assert not old.exists() and other.exists() and not aside_of(tmp_path / "phantom").exists()


def symlink(image, target):
    target.symlink_to(image)


def hard_link(image, target):
    target.hardlink_to(image)


def folder_link(image, target):
    target.parent.rmdir()
    target.parent.symlink_to(image.parent, target_is_directory=True)


@pytest.mark.parametrize("link", [symlink, hard_link, folder_link])
def test_an_input_is_never_a_target(tmp_path, link):
    image = tmp_path / "images" / "a.nii.gz"
    image.parent.mkdir()
    image.write_bytes(b"image")
    target = tmp_path / "out" / "a.nii.gz"
    target.parent.mkdir()
    link(image, target)
    with pytest.raises(InputError, match="would be replaced"):
        check_targets([target], [image], overwrite=True)


def test_where_nothing_can_be_written_is_named_with_its_flag(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    for folder in (tmp_path / "file", tmp_path / "file" / "far" / "below", tmp_path / "dangling" / "below"):
        with pytest.raises(InputError, match=rf"^--output is {folder}, but .*(file|dangling) is not a folder"):
            check_writable(folder, "--output")
    with pytest.raises(InputError, match=r"^--cache is /proc/new, but /proc cannot be written to \(.+\): choose"):
        check_writable(Path("/proc"), "--cache", Path("/proc/new"))
    check_writable(tmp_path / "new" / "below", "--output")
    check_writable(tmp_path, "--output")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (lambda folder: predict.main(["no run", "no image", "-o", folder]), "--output"),
        (lambda folder: compare.main(["no run", "no other", "-o", f"{folder}/page.html"]), "--output"),
        (lambda folder: train.main(["--data=no data", f"--output={folder}"]), "--output"),
        (lambda folder: train.main(["--data=no data", f"--cache={folder}"]), "--cache"),
        (lambda folder: crossval.main(["--data=no data", f"--output={folder}"]), "--output"),
        (lambda folder: prepare.main(["phantom", folder]), "the phantom's folder"),
    ],
)
def test_commands_look_where_they_will_write_before_they_read(command, said, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=rf"^{said} is .*/file/sub/below.*, but .*/file is not a folder"):
        command(str(tmp_path / "file" / "sub" / "below"))


def test_targets_that_are_there_twice_or_impossible(tmp_path):
    there = tmp_path / "there"
    there.write_text("mine")
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "absent")
    for target in (there, dangling):
        with pytest.raises(InputError, match="--overwrite"):
            check_targets([tmp_path / "new", target], [], overwrite=False)
        check_targets([tmp_path / "new", target], [], overwrite=True)
    (tmp_path / "alias").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(InputError, match="twice"):
        check_targets([tmp_path / "new", tmp_path / "alias" / "new"], [], overwrite=True)
    for target in (there / "below", there / "far" / "below", tmp_path / "alias"):
        with pytest.raises(InputError, match="folder"):
            check_targets([target], [], overwrite=True)
