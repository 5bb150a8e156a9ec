"""Images of several channels, from files to predicted volumes."""

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHAPE, save_nifti
from layouts import SHORT, case_images, write_nnunet

from action import evaluate, predict, train
from action.choices import METHODS
from action.config import AugmentationConfig, InputConfig, ModelConfig, TrainConfig, fill_in
from action.data import findings, open_dataset
from action.data.augment import Augmentation
from action.data.batches import SlicePool, step_generator
from action.data.fingerprint import fingerprint_of, load_fingerprint, save_fingerprint
from action.data.images import cases_of
from action.data.volumes import load_case, load_cases, native_slice
from action.errors import InputError
from action.stages import make_learner
from action.stages.base import TrainingData


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return write_nnunet(tmp_path_factory.mktemp("two") / "data", labeled=5, unlabeled=1, test=1, channels=2)


@pytest.fixture(scope="module")
def finished(two, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "run"
    train.main(["--data", str(two), f"--output={output}", *SHORT])
    return output


def test_each_channel_is_scaled_by_its_own_range(two):
    case = open_dataset(two, "nnunet").cases[0]
    loaded = load_case(case, 3, InputConfig((1.5, 1.5)))
    assert loaded.image.shape == (SHAPE[0], 2, *SHAPE[1:])
    images, _ = case_images(1, 2)
    for index, image in enumerate(images):
        low, high = np.quantile(image, [0.005, 0.995])
        expected = np.clip((image - low) / (high - low), 0, 1)
        assert np.allclose(loaded.image[:, index], expected, atol=0.01)
    assert np.allclose(native_slice(loaded, 1), loaded.image[1, 0])  # what is shown is the first


def test_hounsfield_units_are_recognised_channel_by_channel(tmp_path):
    root = write_nnunet(tmp_path, channels=2)
    for path in (root / "imagesTr").glob("*_0001.nii.gz"):
        image = case_images(1)[0][0] - 150
        image[:, :3] = -1000
        save_nifti(path, image)
    cases = open_dataset(root, "nnunet").cases[:5]
    fingerprint = fingerprint_of(cases, "auto")
    assert [channel.intensity for channel in fingerprint.channels] == ["minmax", "hu"]
    save_fingerprint(fingerprint, tmp_path / "fingerprint.json")
    assert load_fingerprint(tmp_path / "fingerprint.json") == fingerprint
    image = load_case(cases[0], 3, InputConfig((1.5, 1.5)), fingerprint).image
    assert not image[:, 1, :3].any() and image[:, 0, :3].any()


def test_a_fingerprint_of_before_there_were_channels_is_read(acdc_root, tmp_path):
    fingerprint = fingerprint_of(open_dataset(acdc_root, "acdc").cases[:3], "auto")
    content = {key: value for key, value in dataclasses.asdict(fingerprint).items() if key != "others"}
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert load_fingerprint(tmp_path / "old.json") == fingerprint


def test_a_channel_stored_in_another_order_is_put_into_that_of_the_first(two, tmp_path):
    root = shutil.copytree(two, tmp_path / "data")
    case = open_dataset(root, "nnunet").cases[0]
    usual = load_case(case, 3, InputConfig((1.5, 1.5)))
    channel = case_images(1, 2)[0][1]
    affine = np.diag([-1.5, 1.5, 8.0, 1.0])
    affine[0, 3] = 1.5 * (SHAPE[2] - 1)
    save_nifti(case.others[0], channel[:, :, ::-1], affine)
    with pytest.warns(UserWarning, match="stored in another order"):
        turned = load_case(case, 3, InputConfig((1.5, 1.5)))
    assert np.array_equal(turned.image, usual.image)


def test_second_channels_of_which_none_can_be_read_are_named(two, tmp_path):
    cases = open_dataset(shutil.copytree(two, tmp_path / "data"), "nnunet").cases[:2]
    for case in cases:
        case.others[0].write_bytes(b"nothing")
    with pytest.raises(InputError) as error:
        load_cases(cases, 3, InputConfig((1.5, 1.5)))
    assert all(str(case.others[0]) in str(error.value) for case in cases)


def test_batches_and_views_keep_the_channels(two):
    cases = load_cases(open_dataset(two, "nnunet").cases[:3], 3, InputConfig((1.5, 1.5)))
    slices = SlicePool(cases, labels=True, seed=0).batch(0, 4)
    assert slices.canvas["image"].shape == (4, 2, 32, 32) and slices.canvas["label"].shape == (4, 1, 32, 32)
    augmentation = Augmentation(AugmentationConfig(intensity_probability=1.0), (32, 32))
    weak = augmentation.weak(slices, np.random.default_rng(0))
    strong = augmentation.strong(weak, np.random.default_rng(0))
    assert weak["image"].shape == strong["image"].shape == (4, 2, 32, 32) and strong["label"].shape == (4, 1, 32, 32)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_several_channels(method, two):
    model = ModelConfig(channels=(4, 6), embedding=8, window=16, stride=16, pooled=4)
    config = fill_in(TrainConfig(method=method, model=model), "data", "output", (1.5, 1.5), (32, 32))
    labeled, *others = load_cases(open_dataset(two, "nnunet").cases[:3], 3, config.input)
    data = TrainingData(SlicePool([labeled], labels=True, seed=0), SlicePool(others, labels=False, seed=1))
    learner = make_learner(config, 3, channels=2).train()
    for stage in learner.stages.values():
        for step in (0, stage.iterations - 1):
            rng = step_generator(0, 0, step)
            loss = stage.losses(learner.network, stage.batch(data, step, rng), step, rng).losses["loss"]
            loss.backward()
            assert loss.isfinite()


def test_every_channel_has_a_brightness_and_a_contrast_of_its_own():
    config = AugmentationConfig(intensity_probability=1.0, blur=(0.0, 0.0))
    image = torch.rand(3, 2, 16, 16)
    changed = Augmentation(config, (16, 16)).intensity({"image": image}, np.random.default_rng(1))["image"]
    fits = []
    for before, after in zip(image.flatten(0, 1), changed.flatten(0, 1), strict=True):
        gain, offset = np.polyfit(before.flatten().numpy(), after.flatten().numpy(), 1)
        assert torch.allclose(after, float(gain) * before + float(offset), atol=1e-4)
        fits.append((round(gain, 4), round(offset, 4)))
    assert len(set(fits)) == 6


def test_a_run_from_data_to_summary(finished, two):
    summary = json.loads((finished / "summary.json").read_text())
    assert list(summary["cases"]) == ["heart_7"] and summary["unit"] == "mm"
    assert len(load_fingerprint(finished / "fingerprint.json").channels) == 2
    before = (finished / "summary.json").read_bytes()
    evaluate.main([str(finished), "--overwrite", "--device=cpu"])
    assert (finished / "summary.json").read_bytes() == before


def call(run, *images, output):
    predict.main([str(run), *map(str, images), "-o", str(output), "--device=cpu"])


def test_channels_are_put_together_by_their_names(finished, two, tmp_path):
    call(finished, two / "imagesTr", output=tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [f"heart_{n}.nii.gz" for n in range(1, 6)]
    files = [two / "imagesTr" / f"heart_2_000{channel}.nii.gz" for channel in (1, 0)]  # as a shell may not give them
    call(finished, *files, output=tmp_path / "one")
    assert (tmp_path / "one" / "heart_2.nii.gz").read_bytes() == (tmp_path / "all" / "heart_2.nii.gz").read_bytes()
    call(finished, two / "imagesTs", output=tmp_path / "test")
    written = (tmp_path / "test" / "heart_7.nii.gz").read_bytes()
    assert written == (finished / "predictions" / "heart_7.nii.gz").read_bytes()


def test_channels_that_do_not_make_a_case(finished, two, tmp_path):
    first = two / "imagesTr" / "heart_1_0000.nii.gz"
    with pytest.raises(InputError, match=r"heart_1_0001\.nii\.gz is missing beside heart_1_0000.*all 2 channels"):
        call(finished, first, output=tmp_path / "out")
    with pytest.raises(InputError, match="does not say which of 2 channels it is"):
        call(finished, two / "labelsTr" / "heart_1.nii.gz", output=tmp_path / "out")
    with pytest.raises(InputError, match="written twice"):
        call(finished, first, first, output=tmp_path / "out")
    third = shutil.copy(first, tmp_path / "heart_1_0002.nii.gz")
    with pytest.raises(InputError, match="one channel more than the 2"):
        call(finished, third, output=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in .*empty"):
        call(finished, tmp_path / "empty", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_refuses_data_of_another_number_of_channels(finished, two, tmp_path):
    root = shutil.copytree(two, tmp_path / "data")
    for path in list(root.glob("images*/*_0001.nii.gz")):
        path.unlink()
    content = json.loads((root / "dataset.json").read_text()) | {"channel_names": {"0": "MRI"}}
    (root / "dataset.json").write_text(json.dumps(content))
    words = r"heart_7.*one channel of heart_7 there, but the training volumes have 2 channels: give each as a file"
    with pytest.raises(InputError, match=words):
        evaluate.main([str(finished), "--data", str(root), "--overwrite", "--device=cpu"])
    with pytest.raises(InputError, match="the training volumes have 2 channels"):
        train.main(["--resume", f"--output={finished}", "--data", str(root)])


def test_a_checkpoint_of_another_number_of_channels_is_refused(finished, two, acdc_root, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    save_fingerprint(fingerprint_of(open_dataset(acdc_root, "acdc").cases[:3], "auto"), run / "fingerprint.json")
    with pytest.raises(InputError, match=r"best\.pt is of a network for 2 channels, but .*fingerprint\.json is of 1"):
        call(run, two / "imagesTr" / "heart_1_0000.nii.gz", output=tmp_path / "out")
    with pytest.raises(InputError, match="network for 2 channels"):
        evaluate.main([str(run), "--overwrite", "--device=cpu"])


def test_of_one_channel_only_0000_is_no_part_of_the_name():
    paths = [Path("a_0000.nii.gz"), Path("b_2023.nii"), Path("c.nii.gz"), Path("d.h5")]
    assert [case.name for case in cases_of(paths, 1, numbered=True)] == ["a", "b_2023", "c", "d"]
    assert [case.name for case in cases_of(paths, 1)] == ["a_0000", "b_2023", "c", "d"]


def test_the_same_scan_in_one_channel_is_not_the_same_scan(two):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cases = load_cases(open_dataset(two, "nnunet").cases[:2], 3, InputConfig((1.5, 1.5)))
        shared = dataclasses.replace(cases[1], image=cases[1].image.copy())
        shared.image[:, 0] = cases[0].image[:, 0]
        facts = [findings.of_case(case, 3) for case in (cases[0], shared)]
    assert not findings.notes_on_copies(facts)
    assert findings.notes_on_copies([facts[0], dataclasses.replace(facts[0], name="b")])
