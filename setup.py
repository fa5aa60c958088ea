"""Builds the native CPU backend where it can; everything else of the build is in pyproject.toml.

Needs torch at build time, so `pip install --no-build-isolation`. Without it, or without a compiler, the install
succeeds all the same, and the reason is left beside the package for `fastkto doctor`. The version is setuptools-scm's;
without build isolation it may be missing, and an install must not fail for that.
"""

import importlib.util
import os
import re
import sys
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = ["csrc/binding.cpp", "csrc/kernels_plain.cpp", "csrc/kernels_avx2.cpp", "csrc/kernels_avx512.cpp"]
OTHERS = ["csrc/kernels.h", "csrc/kernels.inc", "csrc/product.inc", "csrc/fuzz.cpp"]
# The oldest torch whose stable ABI the binary needs: major, minor, patch, tag in the upper bytes.
TORCH_TARGET = "0x020b000000000000"
# Contraction to FMA is the one liberty taken; infinities and NaN keep their meaning.
FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi", "-g0"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g", "-O1"]


class BuildNative(build_ext):
    """Any failure becomes `_native.reason`, a text file where the library would be."""

    def run(self) -> None:
        """Build; leave either the library or the reason why there is none, never both."""
        library = Path(self.get_ext_fullpath("fastkto._native"))
        reason = library.with_name("_native.reason")
        try:
            self._add_torch()
            super().run()
        except (Exception, SystemExit) as error:
            library.unlink(missing_ok=True)
            library.parent.mkdir(parents=True, exist_ok=True)
            reason.write_text(f"{type(error).__name__}: {error}\n")
            print(f"fastkto: the native CPU backend is not built ({error})", file=sys.stderr)
        else:
            reason.unlink(missing_ok=True)

    def _add_torch(self) -> None:
        try:
            from torch.utils.cpp_extension import include_paths, library_paths
        except ImportError as error:
            raise RuntimeError(f"torch is not importable at build time ({error}): use --no-build-isolation") from error
        for extension in self.extensions:
            extension.include_dirs += include_paths()
            extension.library_dirs += library_paths()

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """None: the library registers its operators when it is loaded, and is no Python module."""
        return []


def version_without_scm() -> dict[str, str]:
    """Of an unpacked sdist its own, else the fallback; nothing where setuptools-scm is there to say it."""
    if importlib.util.find_spec("setuptools_scm"):
        return {}
    root = Path(__file__).parent
    if (root / "PKG-INFO").exists():
        return {"version": re.findall(r"^Version: (.+)$", (root / "PKG-INFO").read_text(), re.MULTILINE)[0]}
    pyproject = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return {"version": pyproject["tool"]["setuptools_scm"]["fallback_version"]}


sanitize = SANITIZE if os.environ.get("FASTKTO_SANITIZE") else []
native = Extension(
    "fastkto._native",
    SOURCES,
    depends=OTHERS,
    define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET), ("Py_LIMITED_API", "0x030b0000")],
    extra_compile_args=FLAGS + sanitize,
    extra_link_args=sanitize,
    libraries=["torch_cpu"],
    py_limited_api=True,
)
setup(
    ext_modules=[native],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    **version_without_scm(),
)
