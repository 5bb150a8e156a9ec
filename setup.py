"""The native modules: built by build_support, which says what can be chosen; all else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))  # installers run this file without its folder on the path

from build_support.build_ext import BuildNative, extensions

setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
