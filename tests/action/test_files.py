"""Nothing is half written, and nothing that is there is replaced unasked."""

import os

import pytest

from action.errors import InputError
from action.files import check_targets, final_name, write_aside


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
