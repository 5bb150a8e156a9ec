"""The command of setuptools that builds the native modules."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

from . import ninja_file
from .modules import MODULES, ROOT
from .toolchain import BuildError


def extensions() -> list[Extension]:
    """The native modules that have sources here; their sources and headers belong in the source distribution."""
    return [
        Extension(module.name, module.sources, depends=module.headers, optional=True)
        for module in MODULES.values()
        if module.sources
    ]


class BuildNative(build_ext):
    """Builds a module; a failure is noted in one line and the installation goes on."""

    def build_extension(self, ext: Extension) -> None:
        module = MODULES[ext.name]
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        installed, editable = target.parent, ROOT / "action_kernels"
        reasons = {folder / module.reason_file for folder in (installed, editable)}
        for path in reasons:
            path.unlink(missing_ok=True)
        installed.mkdir(parents=True, exist_ok=True)
        try:
            work = Path(self.build_temp).resolve() / target.name.split(".")[0]
            ninja_file.run(module.plan(), target, work)
        except BuildError as error:
            for path in reasons:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{error}\n")
            print(f"action_kernels: native {module.title} module left out: {error}", file=sys.stderr)

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.endswith("_cuda_kernels"):  # loaded by ctypes, with no part of Python in it
            return str(Path(*fullname.split(".")).with_suffix(".so"))
        return super().get_ext_filename(fullname)
