"""The compiled parts, jpeg_crop.c and area_average.c of imagenet_pipeline/records; setup.cfg says all else.

Each is left out, with a warning, where there is no compiler or no Python.h, the first without libjpeg-turbo >= 2.1, the
second on other than x86-64: everything works without them, with the same pixels, slower. Environment variables:
IMAGENET_PIPELINE_LIBJPEG=FOLDER, one with include/ and lib/libjpeg.a, is linked instead of the system's;
IMAGENET_PIPELINE_NEEDS_COMPILED=1 makes a failure an error, for wheels that are handed out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

PREFIX = os.environ.get("IMAGENET_PIPELINE_LIBJPEG", "")
NEEDED = bool(os.environ.get("IMAGENET_PIPELINE_NEEDS_COMPILED"))
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
PACKAGES = "gcc libc6-dev libjpeg-dev, and python3-dev for a Python of the system"
JPEG_CROP = Extension(
    "imagenet_pipeline.records.jpeg_crop",
    ["imagenet_pipeline/records/jpeg_crop.c"],
    depends=["imagenet_pipeline/records/jpeg_huffman.h"],
    include_dirs=[f"{PREFIX}/include"] if PREFIX else [],
    py_limited_api=not FREE_THREADED,
)

# No products and sums in one: OpenCV rounds between them.
AREA_AVERAGE = Extension(
    "imagenet_pipeline.records.area_average",
    ["imagenet_pipeline/records/area_average.c"],
    extra_compile_args=["-O3", "-ffp-contract=off"],
    py_limited_api=not FREE_THREADED,
)


def static_library() -> str:
    """The path of libjpeg.a: that of PREFIX, or the one the compiler knows; empty where there is none."""
    if PREFIX:
        library = Path(PREFIX, "lib", "libjpeg.a").absolute()
        if not library.is_file():
            raise SystemExit(f"error: IMAGENET_PIPELINE_LIBJPEG: {library} does not exist")
        return str(library)
    words = [*(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split(), "-print-file-name=libjpeg.a"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
    return found if os.path.isabs(found) and Path(found).is_file() else ""


class BuildWhatCanBe(build_ext):
    """Links libjpeg statically, else dynamically; leaves an extension out that cannot be built."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True  # what lies in build/ may have been made with other settings

    def build_extension(self, extension: Extension) -> None:
        library = static_library() if extension is JPEG_CROP else ""
        libraries = ["jpeg"] if extension is JPEG_CROP else []
        ways: list[tuple[list[str], list[str], list[str], list[tuple[str, str | None]]]] = []
        if not PREFIX or not library:
            ways.append(([], libraries, [], []))
        if library:
            # Its symbols stay inside: other libjpegs are loaded into the same process (Pillow's, OpenCV's).
            hidden = ["-Wl,--exclude-libs,ALL", "-Wl,-Bsymbolic"] if sys.platform == "linux" else []
            ways.insert(0, ([library], [], hidden, [("LINKED_STATICALLY", None)]))
        for way in ways:
            extension.extra_objects, extension.libraries, extension.extra_link_args, extension.define_macros = way
            try:
                super().build_extension(extension)
                return
            except (CCompilerError, ExecError, PlatformError) as error:
                reason = error
        if NEEDED:
            raise reason
        Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)  # an earlier build's would go along
        print(
            f"warning: built without {extension.name} ({reason}); Debian's packages for it: {PACKAGES}",
            file=sys.stderr,
        )
        self.distribution.ext_modules = self.extensions = [other for other in self.extensions if other is not extension]


class WheelOfWhatWasBuilt(bdist_wheel):
    """Is py3-none-any where the extension was left out."""

    def run_command(self, command: str) -> None:
        super().run_command(command)
        if command == "build":
            self.root_is_pure = not self.distribution.has_ext_modules()


setup(
    ext_modules=[JPEG_CROP, AREA_AVERAGE],
    cmdclass={"build_ext": BuildWhatCanBe, "bdist_wheel": WheelOfWhatWasBuilt},
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
