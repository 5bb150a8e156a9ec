"""Miniature data sets in the layouts that are no fixtures, written with the libraries themselves."""

import json
from pathlib import Path

import numpy as np
from conftest import blobs, save_nifti

SHORT = [
    "--model.channels=[4,6,8]",
    "--model.embedding=8",
    "--model.window=16",
    "--model.stride=8",
    "--model.pooled=4",
    "--global_distillation.iterations=1",
    "--local_distillation.iterations=1",
    "--anatomical_contrast.iterations=2",
    "--anatomical_contrast.queries=8",
    "--anatomical_contrast.keys=8",
    "--anatomical_contrast.negatives_per_query=8",
    "--device=cpu",
]
"""A training of four updates."""


def case_images(seed: int, channels: int = 1) -> tuple[list[np.ndarray], np.ndarray]:
    """Channels int16, each with a contrast of its own, and a label uint8 of three classes, all [Z, Y, X]."""
    image, label = blobs(np.random.default_rng(seed), 3)
    return [image if index % 2 == 0 else 4000 - 3 * image for index in range(channels)], label


def write_nnunet(
    root: Path, *, labeled: int = 5, unlabeled: int = 2, test: int = 0, channels: int = 1, end: str = ".nii.gz"
) -> Path:
    """Cases heart_1, heart_2 ...; the unlabelled ones in imagesUn, those of the test with labels."""
    places = ["Tr"] * labeled + ["Un"] * unlabeled + ["Ts"] * test
    for number, place in enumerate(places, start=1):
        images, label = case_images(number, channels)
        for channel, image in enumerate(images):
            save_nifti(root / f"images{place}" / f"heart_{number}_{channel:04d}{end}", image)
        if place != "Un":
            save_nifti(root / f"labels{place}" / f"heart_{number}{end}", label)
    describe(root, channels, file_ending=end)
    return root


def describe(root: Path, channels: int = 1, **changed: object) -> None:
    """A dataset.json; ``None`` leaves a key out."""
    content = {
        "channel_names": {str(index): f"MRI {index}" for index in range(channels)},
        "labels": {"background": 0, "wall": 1, "chamber": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    } | changed
    text = json.dumps({key: value for key, value in content.items() if value is not None})
    (root / "dataset.json").write_text(text)


def write_folders(root: Path, labeled: int = 5, unlabeled: int = 0) -> Path:
    """Images scan1, scan2 ...; the last have no label."""
    for number in range(1, labeled + unlabeled + 1):
        (image,), label = case_images(number)
        save_nifti(root / "images" / f"scan{number}.nii.gz", image)
        if number <= labeled:
            save_nifti(root / "labels" / f"scan{number}.nii.gz", label)
    return root


def write_hdf5(root: Path, *, train: int = 3, slices: str = "data/slices", lists: bool = True) -> Path:
    """Two frames of every patient: ``train`` of them in slices, one to validate and one to test as volumes."""
    import h5py

    def put(path: Path, image: np.ndarray, label: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["image"], file["label"] = image.astype(np.float32) / 1000, label

    names: dict[str, list[str]] = {"train_slices": [], "val": [], "test": []}
    for number in range(1, train + 3):
        for frame in (1, 12):
            name = f"patient{number:03d}_frame{frame:02d}"
            (image,), label = case_images(100 * number + frame)
            if number > train:
                put(root / "data" / f"{name}.h5", image, label)
                names["val" if number == train + 1 else "test"].append(name)
                continue
            for z in range(len(image)):
                put(root / slices / f"{name}_slice_{z + 1}.h5", image[z], label[z])
                names["train_slices"].append(f"{name}_slice_{z + 1}")
    for key, listed in names.items() if lists else ():
        (root / f"{key}.list").write_text("".join(f"{name}\n" for name in listed))
    return root
