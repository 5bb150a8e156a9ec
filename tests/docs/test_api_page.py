import re

from pages import DOCS

import action_kernels
from action_kernels import distributed


def test_the_page_of_the_library_has_every_public_name():
    page = (DOCS / "reference" / "action_kernels.md").read_text(encoding="utf-8")
    names = [*action_kernels.__all__, *distributed.__all__]
    assert sorted(re.findall(r"^::: [\w.]+\.(\w+)$", page, re.MULTILINE)) == sorted(names)
