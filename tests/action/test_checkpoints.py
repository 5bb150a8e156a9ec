"""Checkpoints that are not this run's: of another program, another network, damaged."""

import shutil

import pytest
import torch
from test_train import SHORT, run

from action import predict
from action.checkpoint import RENAMED_IN_2
from action.errors import InputError


@pytest.fixture(scope="module")
def finished(acdc_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "run"
    run(
        [
            *("--data", acdc_root, "--method=supervised", "--baseline.iterations=1", "--labeled=2"),
            f"--output={output}",
            *SHORT,
        ]
    )
    return output


CHANGES = {
    "another program": (lambda s: {"state_dict": {}}, "not a checkpoint of a run.*state_dict"),
    "a list": (lambda s: [1, 2], "not a readable checkpoint .*list"),
    "no class names": (lambda s: {k: v for k, v in s.items() if k != "class_names"}, "class_names"),
    "no weights": (lambda s: s | {"learner": {}}, "lacks weights"),
    "class names that are none": (lambda s: s | {"class_names": 4}, "class_names"),
    "a later format": (lambda s: s | {"format": 3}, "format 3.*use the version of action"),
    "a format of its own": (lambda s: s | {"format": "zip"}, "format 'zip'"),
    "other layers": (
        lambda s: s | {"learner": {k.replace("encoder", "down"): v for k, v in s["learner"].items()}},
        "net",
    ),
    "other widths": (
        lambda s: s | {"learner": {k: v[:1] if getattr(v, "ndim", 0) else v for k, v in s["learner"].items()}},
        "another network than model.channels",
    ),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES.keys())
def test_it_is_named_with_what_it_holds(change, words, finished, acdc_root, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    best = folder / "checkpoints" / "best.pt"
    torch.save(change(torch.load(best, weights_only=True)), best)
    image = next(acdc_root.glob("*/*_frame01.nii.gz"))
    with pytest.raises(InputError, match=words) as error:
        predict.predict(folder, [image], tmp_path / "out", "cpu")
    assert str(best) in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], {"learner": {}, "class_names": ["a"]}, {"format": 3}])
def test_a_run_is_not_resumed_from_it(content, finished, acdc_root, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    for name in ("latest", "previous"):
        torch.save(content, folder / "checkpoints" / f"{name}.pt")
    with pytest.raises(InputError):
        run(["--resume", f"--output={folder}"])


def as_format_1(state, *, marked):
    """The state as it was written when the learner held the heads and banks of every method."""
    old = {}
    for name, value in state["learner"].items():
        before, after = next((b, a) for b, a in RENAMED_IN_2.items() if name.startswith(a))
        old[before + name.removeprefix(after)] = value
    unused = {"student.predictor.0.weight": torch.ones(2, 2), "teacher.predictor.0.weight": torch.ones(2, 2)}
    (group,) = state["optimizer"]["param_groups"]
    optimizer = state["optimizer"] | {"param_groups": [group | {"params": [*group["params"], len(group["params"])]}]}
    state = state | {"learner": unused | old, "optimizer": optimizer, "format": 1}
    return state if marked else {key: value for key, value in state.items() if key not in ("format", "torch")}


@pytest.mark.parametrize("marked", [True, False])
def test_a_run_of_the_first_format_is_read_and_resumed(marked, finished, acdc_root, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    for path in (folder / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        assert state["format"] == 2 and state["torch"] == torch.__version__
        torch.save(as_format_1(state, marked=marked), path)
    run(["--resume", f"--output={folder}"])
    image = next(acdc_root.glob("*/*_frame01.nii.gz"))
    assert predict.predict(folder, [image], tmp_path / "out", "cpu")[0].is_file()
