"""Python blocks run, page by page, in one namespace; the commands of bash blocks exist and take the flags shown.

A block after the comment ``<!-- not run: a part of a file -->`` is a part of a file, or needs one beside it: it must
compile, and no more.
"""

import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings

import jsonargparse
import nibabel as nib
import numpy as np
import pytest
import torch
from pages import PAGES, ROOT, blocks, name_of

WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
COMMANDS = sorted(
    {
        re.split(r"\s+#", line)[0].strip()
        for page in PAGES
        for block in blocks(page, "bash")
        for line in re.split(r"\n|&&", block.code.replace("\\\n", " "))
        if line.strip() and not line.startswith(("#", "export "))
    }
)
GPU_DAY = [
    re.sub(r'"\$@".*|["()]', "", line[line.index('"$python"') :])
    .replace("$python", "python")
    .replace("$sweep", "large")
    .replace("$backend", "cuda")
    for line in (ROOT / "benchmarks" / "gpu_day.sh").read_text().splitlines()
    if '"$python"' in line
]


class Parsed(BaseException):
    """The arguments were understood; the program need not go on."""


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_blocks_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    with torch.random.fork_rng(devices=[]):
        for block in blocks(page, "python"):
            code = compile("\n" * block.line + block.code, name_of(page), "exec")
            if block.runs:
                exec(code, namespace)


def test_only_pages_with_tests_of_their_own_have_parts_of_files():
    marked = {name_of(page) for page in WITH_PYTHON if not all(block.runs for block in blocks(page, "python"))}
    assert marked == {"docs/how-to/add.md", "docs/how-to/processes.md", "docs/how-to/train-from-python.md"}


def test_the_format_of_the_page_on_additions_finds_cases(tmp_path):
    (code,) = (block.code for block in blocks(ROOT / "docs/how-to/add.md", "python") if "class Scans" in block.code)
    namespace = {"__name__": "scans"}
    exec(compile(code, "scans.py", "exec"), namespace)
    for name in ("b10/scan", "b9/scan", "b9/mask"):
        (tmp_path / f"{name}.nii.gz").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.nii.gz").touch()
    assert namespace["FORMAT"].recognises(tmp_path)
    first, second = namespace["FORMAT"].find_cases(tmp_path)
    assert (first.name, first.label) == ("b9", tmp_path / "b9" / "mask.nii.gz")
    assert (second.name, second.label) == ("b10", None)


def test_the_ten_lines_of_the_page_on_python_train(tmp_path, monkeypatch, capsys):
    classes, lines = (block.code for block in blocks(ROOT / "docs/how-to/train-from-python.md", "python"))
    assert len([line for line in lines.splitlines() if line.strip()]) <= 10
    (tmp_path / "mine.py").write_text(classes)
    rng = np.random.default_rng(0)
    for patient in range(10):
        folder = tmp_path / "scans" / f"patient{patient}"
        folder.mkdir(parents=True)
        organ = np.zeros((32, 32, 3), np.uint8)
        organ[8 + patient % 5 : 24, 10:22] = 1
        image = rng.normal(100, 10, organ.shape) + 100 * organ
        for name, array in (("scan", image.astype(np.int16)), ("mask", organ)):
            nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 5.0, 1.0])), folder / f"{name}.nii.gz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    exec(compile(lines, "ten lines", "exec"), {"__name__": "page"})
    summary = json.loads((tmp_path / "runs" / "scans-Focal-4-seed0" / "summary.json").read_text())
    assert summary["mean"]["dice"] > 0.8  # an organ twice as bright as the rest
    assert '"dice"' in capsys.readouterr().out
    monkeypatch.delitem(sys.modules, "mine")


def test_the_script_of_the_page_on_processes_runs_in_two(tmp_path):
    page = ROOT / "docs/how-to/processes.md"
    (code,) = (block.code for block in blocks(page, "python") if "init_process_group" in block.code)
    (parts,) = (block.code for block in blocks(page, "python") if "bank.gather" in block.code)
    end = "dist.destroy_process_group()"
    assert code.endswith(end)
    (tmp_path / "divided.py").write_text(code.removesuffix(end) + parts + f"\n{end}\n")
    (command,) = (block.code for block in blocks(page, "bash"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, *shlex.split(command)[1:3], "--standalone", *shlex.split(command)[3:]]
    run = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stderr
    said = re.findall(r"rank \d: \d+ of \d+ rows", run.stdout)  # both may be in one line
    assert sorted(said) == ["rank 0: 320 of 640 rows", "rank 1: 320 of 640 rows"]


def understood(module, arguments, monkeypatch):
    """Whether a program's parser takes the arguments."""
    parse = jsonargparse.ArgumentParser.parse_args

    def parse_alone(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(jsonargparse.ArgumentParser, "parse_args", parse_alone)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the module has been imported before
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
        except Parsed:
            return True
        except SystemExit as end:
            return end.code == 0  # --help
    return False


@pytest.mark.parametrize("command", [*COMMANDS, *GPU_DAY])
def test_commands_exist_and_take_their_flags(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    python = next((i for i, word in enumerate(words[:-1]) if re.fullmatch(r"(.*/)?python3?", word)), None)
    if python is None:
        assert words[0].endswith("pip") or os.access(ROOT / words[0], os.X_OK)
        settings = (ROOT / "pyproject.toml").read_text()
        assert all(f"\n{extra} = [" in settings for extra in re.findall(r"\.\[(\w+)\]", command))
        return
    assert words[python + 1] == "-m"
    module, *arguments = words[python + 2 :]
    assert importlib.util.find_spec(module) is not None
    if module == "pytest":
        assert all((ROOT / word).exists() for word in arguments if word.startswith("tests/"))
    # The first two have no flags, and what the last starts is tested above.
    elif module not in {"venv", "action_kernels", "torch.distributed.run"}:
        assert understood(module, arguments, monkeypatch)


def test_a_wrong_flag_is_not_understood(monkeypatch):
    assert not understood("action.predict", ["RUN", "IMAGE", "-o", "DIR", "--no-such-flag"], monkeypatch)
