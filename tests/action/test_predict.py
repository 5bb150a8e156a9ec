"""Predicting and evaluating replace nothing unasked and stop before they compute where something is amiss."""

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from action import evaluate, predict, train
from action.errors import InputError

SHORT = ["--method=supervised", "--labeled=2", "--baseline.iterations=1", "--model.channels=[4,6,8]", "--device=cpu"]


@pytest.fixture(scope="module")
def finished(acdc_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "whole"
    train.main(["--data", str(acdc_root), *SHORT, "--output", str(output)])
    return output


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def image(acdc_root, tmp_path):
    return Path(shutil.copy(sorted(acdc_root.glob("*/*_frame01.nii.gz"))[0], tmp_path / "a.nii.gz"))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(run, *images, output, flags=()):
    predict.main([str(run), *map(str, images), "-o", str(output), "--device=cpu", *flags])


def test_predict_replaces_only_when_told_to(finished, image, tmp_path):
    output = tmp_path / "labels"
    output.mkdir()
    (output / "a.nii.gz").write_bytes(b"drawn by hand")
    with pytest.raises(InputError, match="--overwrite"):
        call(finished, image, output=output)
    assert (output / "a.nii.gz").read_bytes() == b"drawn by hand"
    call(finished, image, output=output, flags=["--overwrite"])
    assert (output / "a.nii.gz").read_bytes() != b"drawn by hand"


@pytest.mark.parametrize("log", ["without its last row", "of half a row"])
def test_a_run_that_is_not_finished_is_used_and_said(log, copy, image, tmp_path, capsys):
    call(copy, image, output=tmp_path / "whole")
    assert "not finished" not in capsys.readouterr().out
    lines = (copy / "metrics.csv").read_text().splitlines(keepends=True)
    (copy / "metrics.csv").write_text("".join(lines[:-1]) + ("" if log == "without its last row" else ",sup"))
    call(copy, image, output=tmp_path / "out")
    assert f"{copy} is not finished, it has 0 of 1 updates" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.nii", "A/a.nii.gz", "a.NII.GZ"])
def test_two_images_never_share_a_target(finished, image, tmp_path, name):
    other = tmp_path / name
    other.parent.mkdir(exist_ok=True)
    shutil.copy(image, other)
    with pytest.raises(InputError, match="twice"):
        call(finished, image, other, output=tmp_path / "out", flags=["--overwrite"])
    assert not (tmp_path / "out").exists()


def test_predict_never_replaces_another_image_of_the_call(finished, image, tmp_path):
    (tmp_path / "b").mkdir()
    other = Path(shutil.copy(image, tmp_path / "b" / "c.nii.gz"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii.gz").hardlink_to(other)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="would be replaced"):
        call(finished, image, other, output=tmp_path / "out", flags=["--overwrite"])
    assert contents(tmp_path) == before


def test_evaluate_replaces_results_only_when_told_to(copy, finished):
    before = contents(copy)
    with pytest.raises(InputError, match="--overwrite"):
        evaluate.main([str(copy)])
    assert contents(copy) == before
    evaluate.main([str(copy), "--overwrite", "--device=cpu"])
    assert (copy / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


def without_patient(data, test):
    shutil.rmtree(data / test[0])
    return test[0]


def without_label(data, test):
    next((data / test[-1]).glob("*_gt.nii.gz")).unlink()
    return test[-1]


def other_patients(data, test):
    for folder in data.glob("patient*"):
        for path in folder.iterdir():
            path.rename(path.with_name(path.name.replace("patient", "patient9")))
        folder.rename(folder.with_name(folder.name.replace("patient", "patient9")))
    return test[0]


def other_classes(data, test):
    (data / "dataset.json").write_text(json.dumps({"classes": ["background", "a", "b", "c"]}))
    return "classes background, a, b, c"


def without_foreground(data, test):
    for patient in test:
        for path in (data / patient).glob("*_gt.nii.gz"):
            label = nib.load(path)
            nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    return "any class but the background"


def absent(data, test):
    shutil.rmtree(data)
    return "--data"


@pytest.mark.parametrize(
    "change", [without_patient, without_label, other_patients, other_classes, without_foreground, absent]
)
def test_evaluate_refuses_other_data_and_writes_nothing(change, copy, acdc_root, tmp_path):
    data = Path(shutil.copytree(acdc_root, tmp_path / "data"))
    word = change(data, json.loads((copy / "split.json").read_text())["test"])
    before = contents(copy)
    with pytest.raises(InputError, match=word):
        evaluate.main([str(copy), "--data", str(data), "--overwrite", "--device=cpu"])
    assert contents(copy) == before


def test_evaluate_refuses_an_image_that_is_its_own_target(copy, acdc_root, tmp_path):
    data = Path(shutil.copytree(acdc_root, tmp_path / "data"))
    target = sorted((copy / "predictions").iterdir())[0]
    source = next(data.glob(f"*/{target.name}"))
    target.unlink()
    target.hardlink_to(source)
    before = contents(copy)
    with pytest.raises(InputError, match="would be replaced"):
        evaluate.main([str(copy), "--data", str(data), "--overwrite", "--device=cpu"])
    assert contents(copy) == before


def test_distances_are_in_voxels_where_files_have_no_voxel_size(copy, acdc_root, tmp_path, capsys):
    data = Path(shutil.copytree(acdc_root, tmp_path / "data"))
    assert json.loads((copy / "summary.json").read_text())["unit"] == "mm"
    for path in data.glob("*/*_frame*.nii.gz"):
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), np.eye(4)), path)
    evaluate.main([str(copy), "--data", str(data), "--overwrite", "--device=cpu"])
    printed = capsys.readouterr().out
    assert "ASD voxels" in printed and "HD95 voxels" in printed and "ASD mm" not in printed
    assert json.loads((copy / "summary.json").read_text())["unit"] == "voxels"


@pytest.fixture(scope="module")
def other_seed(acdc_root, finished, tmp_path_factory):
    """A run of the same settings but its seed, and so with another network."""
    output = tmp_path_factory.mktemp("runs") / "other"
    train.main(["--data", str(acdc_root), *SHORT, "--seed=1", "--optimizer.lr=0.3", "--output", str(output)])
    return output


@pytest.fixture(scope="module")
def scattered(finished, tmp_path_factory):
    """A run whose network is drawn by chance, so that it predicts many pieces of every class."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "scattered"))
    best = run / "checkpoints" / "best.pt"
    state = torch.load(best, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, value in state["learner"].items():
        if name.startswith("network.student.") and value.is_floating_point() and "running" not in name:
            value.copy_(torch.randn(value.shape, generator=generator) * (0.0 if name.endswith("bias") else 1.0))
    torch.save(state, best)
    return run


@pytest.fixture
def folder(acdc_root, tmp_path):
    """Three images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, path in enumerate(sorted(acdc_root.glob("*/*_frame01.nii.gz"))[:3]):
        shutil.copy(path, folder / f"image{number}.nii.gz")
    return folder


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def probabilities(path):
    with np.load(path) as content:
        return content["probabilities"].astype(np.float32)


def test_probabilities_lie_as_the_labels_do_and_decide_them(finished, folder, tmp_path, capsys):
    turned = nib.load(folder / "image0.nii.gz")
    nib.save(turned.as_reoriented([[1, -1], [0, 1], [2, 1]]), folder / "image1.nii.gz")
    call(finished, folder, output=tmp_path / "out", flags=["--probabilities", "--overlay"])
    names = [f"image{number}{end}" for number in range(3) for end in (".nii.gz", ".npz", ".png")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    for number in range(3):
        shares = probabilities(tmp_path / "out" / f"image{number}.npz")
        label = voxels(tmp_path / "out" / f"image{number}.nii.gz")
        assert shares.shape == (4, *label.shape[::-1]) and np.allclose(shares.sum(0), 1, atol=3e-3)
        chosen = np.take_along_axis(shares, label.T[None].astype(int), axis=0)[0]
        assert (chosen >= shares.max(0) - 1e-3).all()
    printed = capsys.readouterr().out
    assert "image1.nii.gz: stored with other axes" in printed
    assert all(f"image{number}.nii.gz: 4 slices in " in printed for number in range(3)) and "slices/s" in printed


def test_an_ensemble_averages_the_probabilities_of_its_runs(finished, other_seed, image, tmp_path):
    shares = []
    for name, first, flags in (
        ("one", finished, []),
        ("two", other_seed, []),
        ("both", finished, ["--ensemble", str(other_seed)]),
    ):
        call(first, image, output=tmp_path / name, flags=["--probabilities", *flags])
        shares.append(probabilities(tmp_path / name / "a.npz"))
    one, two, both = shares
    assert np.abs(one - two).max() > 0.01
    assert np.allclose(both, (one + two) / 2, atol=1e-3)


def changed_config(run, old, new):
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new))


def other_spacing(run):
    changed_config(run, "spacing:\n  - 1.5", "spacing:\n  - 1.25")
    return "input.spacing of the one: 1.5 x 1.5 mm, of the other: 1.25 x 1.5 mm"


def other_names(run):
    best = run / "checkpoints" / "best.pt"
    state = torch.load(best, weights_only=True)
    torch.save(state | {"class_names": [*state["class_names"][:-1], "another"]}, best)
    return "the classes of the one: .*, of the other: .*another"


def other_scaling(run):
    path = run / "fingerprint.json"
    path.write_text(path.read_text().replace('"minmax"', '"hu"'))
    return "scaling of intensities of the one: minmax, of the other: hu"


def other_axes(run):
    path = run / "fingerprint.json"
    content = json.loads(path.read_text())
    content["directions"] = [row[::-1] for row in content["directions"]]
    path.write_text(json.dumps(content))
    return "so that other slices would be seen"


@pytest.mark.parametrize("change", [other_spacing, other_names, other_scaling, other_axes])
def test_runs_that_do_not_go_together_are_refused(change, finished, copy, image, tmp_path):
    words = change(copy)
    with pytest.raises(InputError, match=words):
        call(finished, image, output=tmp_path / "out", flags=["--ensemble", str(copy)])
    assert not (tmp_path / "out").exists()


def test_a_run_counts_once(finished, image, tmp_path):
    with pytest.raises(InputError, match="is named twice"):
        call(finished, image, output=tmp_path / "out", flags=["--ensemble", str(finished / ".." / finished.name)])


def test_going_on_passes_over_what_is_whole_and_makes_the_rest(finished, folder, tmp_path, capsys):
    whole, output = tmp_path / "whole", tmp_path / "out"
    call(finished, folder, output=whole, flags=["--overlay"])
    output.mkdir()
    for name in ("image0.nii.gz", "image0.png", "image1.nii.gz"):  # killed before its overlay was drawn
        shutil.copy(whole / name, output / name)
    (output / ".partial-1-image2.png").write_bytes(b"half")
    os.utime(output / ".partial-1-image2.png", ns=(1, 1))
    before = (output / "image0.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    call(finished, folder, output=output, flags=["--overlay", "--continue"])
    printed = capsys.readouterr().out
    assert "1 of 3 images have results" in printed and "image0.nii.gz: " not in printed
    assert (output / "image0.nii.gz").stat().st_mtime_ns == before
    assert contents(output).keys() == contents(whole).keys()
    assert all(
        np.array_equal(voxels(output / name), voxels(whole / name)) for name in ("image1.nii.gz", "image2.nii.gz")
    )
    call(finished, folder, output=output, flags=["--overlay", "--continue"])
    assert "3 of 3 images have results" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["image1.nii.gz", "image1.png"])
def test_going_on_replaces_no_file_of_another_s(name, finished, folder, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / name).write_bytes(b"drawn by hand")
    with pytest.raises(InputError, match=f"{name} exists"):
        call(finished, folder, output=output, flags=["--overlay", "--continue"])
    assert contents(output) == {Path(name): b"drawn by hand"}


def test_going_on_and_replacing_exclude_each_other(finished, image, tmp_path):
    with pytest.raises(InputError, match="exclude each other"):
        call(finished, image, output=tmp_path / "out", flags=["--continue", "--overwrite"])


def test_an_image_with_damaged_voxels_does_not_keep_the_others_from_being_segmented(finished, folder, tmp_path):
    image = nib.load(folder / "image1.nii.gz")
    array = np.asarray(image.dataobj).astype(np.float32)
    array[3, 2, 1] = np.nan
    nib.save(nib.Nifti1Image(array, image.affine), folder / "image1.nii.gz")
    with pytest.raises(InputError, match=r"image1\.nii\.gz: 1 of 4096 voxels are NaN"):
        call(finished, folder, output=tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == [Path("image0.nii.gz"), Path("image2.nii.gz")]


@pytest.mark.parametrize("flag", ["--mirror", "--largest_component"])
def test_evaluate_and_predict_make_the_same_of_a_case(flag, scattered, acdc_root, tmp_path):
    copy = Path(shutil.copytree(scattered, tmp_path / "run"))
    plain = {path.name: voxels(path) for path in (copy / "predictions").iterdir()}
    evaluate.main([str(copy), "--overwrite", "--device=cpu", flag])
    made = {path.name: voxels(path) for path in (copy / "predictions").iterdir()}
    assert any((made[name] != plain[name]).any() for name in plain)
    call(copy, *(next(acdc_root.glob(f"*/{name}")) for name in made), output=tmp_path / "out", flags=[flag])
    assert all(np.array_equal(voxels(tmp_path / "out" / name), made[name]) for name in made)
    summary = json.loads((copy / "summary.json").read_text())
    assert summary["mirror"] is (flag == "--mirror")
    assert bool(summary["largest_component"]) is (flag == "--largest_component")


def test_classes_of_one_piece_go_by_their_names(scattered, image, tmp_path):
    names = list(json.loads((scattered / "summary.json").read_text())["classes"])
    with pytest.raises(InputError, match="there is no class 'liver': choose among"):
        call(scattered, image, output=tmp_path / "out", flags=["--largest_component", "liver"])
    call(scattered, image, output=tmp_path / "all")
    plain = voxels(tmp_path / "all" / "a.nii.gz")
    pieces = [ndimage.label(plain == index, np.ones((3, 3, 3)))[1] for index in (1, 2, 3)]
    index = 1 + int(np.argmax(pieces))
    assert pieces[index - 1] > 1
    call(scattered, image, output=tmp_path / "out", flags=["--largest_component", names[index - 1]])
    kept = voxels(tmp_path / "out" / "a.nii.gz")
    assert ndimage.label(kept == index, np.ones((3, 3, 3)))[1] == 1
    assert np.array_equal(kept[plain != index], plain[plain != index])
