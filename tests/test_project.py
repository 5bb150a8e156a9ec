"""What stands in two places of the project's own files says the same in both, and their links lead somewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pyprojecttoml = pytest.importorskip("setuptools.config.pyprojecttoml")

ROOT = Path(__file__).parents[1]
PAGES = ["CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md"]
TEMPLATES = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def read(path: Path | str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return pyprojecttoml.load_file(ROOT / "pyproject.toml")["project"]


def test_the_citation_is_that_of_this_project_and_of_both_papers(project: dict[str, Any]) -> None:
    citation = read("CITATION.cff")
    assert citation["title"] == project["description"]
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert citation["authors"] == project["authors"]
    papers = [paper["identifiers"][0]["value"] for paper in citation["references"]]
    assert papers == ["arXiv:2206.02307", "arXiv:2304.02689"]


def test_the_workflow_tests_the_oldest_and_the_newest_that_are_supported(project: dict[str, Any]) -> None:
    matrix = read(".github/workflows/ci.yml")["jobs"]["versions"]["strategy"]["matrix"]
    pythons = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert matrix["python"] == [pythons[0], pythons[-1]]
    assert project["requires-python"] == f">={pythons[0]}"
    oldest = next(x for x in project["dependencies"] if x.startswith("torch")).removeprefix("torch>=")
    newest = re.search(r"TORCH:-([\d.]+)}", (ROOT / ".ci/tests").read_text())
    assert newest and matrix["torch"] == [f"{oldest}.0", newest[1]]


def test_the_workflow_calls_scripts_that_there_are() -> None:
    steps = [step for job in read(".github/workflows/ci.yml")["jobs"].values() for step in job["steps"]]
    scripts = {step["run"].split()[0] for step in steps if step.get("run", "").startswith(".ci/")}
    assert scripts == {".ci/run", ".ci/tests"}
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_forms_have_what_a_form_needs(template: Path) -> None:
    form = read(template)
    assert {"name", "description", "body"} <= set(form)
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in asked}) == len(asked)
    assert all(part["attributes"]["label"] for part in asked)


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text())
    assert targets
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []
