from collections import Counter
from pathlib import Path

import pytest
import yaml
from pages import DOCS, PAGES, anchors, links, name_of

from tools.docs import settings


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_images_lead_somewhere(page):
    broken = []
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_navigation_once():
    class Loader(yaml.SafeLoader):
        pass

    config = yaml.load((DOCS.parent / "mkdocs.yml").read_text(), Loader)

    def pages(entry):
        children = entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else None
        return [entry] if children is None else [page for child in children for page in pages(child)]

    listed = Counter(pages(config["nav"]))
    assert set(listed.values()) == {1}
    present = {str(page.relative_to(DOCS)) for page in PAGES if page.is_relative_to(DOCS)}
    assert present <= set(listed)


def test_the_page_of_settings_says_what_the_dataclasses_say():
    assert settings.PAGE.read_text(encoding="utf-8") == settings.page(), "run python -m tools.docs.settings"


def test_the_site_needs_no_network():
    config = (DOCS.parent / "mkdocs.yml").read_text()
    assert yaml.safe_load(config)["theme"]["font"] is False
    assert "http" not in config
    assert not [page for page in Path(DOCS).rglob("*.css") if "http" in page.read_text()]
