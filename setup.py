"""Installs kernels/ as encodec_fast.kernels; everything that can be said as data stands in pyproject.toml.

A top-level package named `kernels` would shadow Hugging Face's package of that name, which transformers imports
where it is installed. Hence the mapping, in wheel, sdist and editable install alike.
"""

import runpy
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ENGINE = Path("kernels") / "cpu"


# In the name of a wheel without the engine: of a build that succeeds, pip shows the name and nothing else
WITHOUT_ENGINE = "0_without_cpu_engine"


class BuildEngine(build_ext):
    """Compiles the CPU engine. Without a compiler the package installs without it: the wheel's name, `info` and the log say so."""

    def run(self) -> None:
        build = runpy.run_path(str(ENGINE / "build.py"))
        in_place = self.inplace or self.editable_mode
        folder = ENGINE if in_place else Path(self.build_lib) / "encodec_fast" / "kernels" / "cpu"
        # of an earlier build: should this one fail, it would be installed for this one's
        (folder / build["LIBRARY"]).unlink(missing_ok=True)
        try:
            build["build"](folder)
        except build["BuildError"] as error:
            self.distribution.without_engine = True
            self.warn(f"installing without the CPU engine, so that CPUs run torch, several times slower: {error}")

    def get_outputs(self) -> list[str]:
        built = Path(self.build_lib) / "encodec_fast" / "kernels" / "cpu"
        return [str(path) for path in built.glob("*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class AnyPythonWheel(bdist_wheel):
    """The engine is bound by ctypes: one wheel serves every Python and torch on a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        if getattr(self.distribution, "without_engine", False):
            self.build_number = WITHOUT_ENGINE
            return "py3", "none", "any"
        return "py3", "none", super().get_tag()[2]


setup(
    packages=[
        *find_packages(include=["encodec_fast", "encodec_fast.*"]),
        "encodec_fast.kernels",
        *(f"encodec_fast.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"encodec_fast.kernels": "kernels"},
    include_package_data=False,  # only what is named here
    package_data={
        "encodec_fast": [
            "py.typed",
            "assets/*.flac",
            "assets/*.safetensors",
            "assets/*.ecdt",
            "pages/*.html",
            "dataset/report.html",
            "quality/page.html",
            "training/report.html",
        ],
        "encodec_fast.kernels": [f"cpu/*/*.{kind}" for kind in ("cpp", "h", "inl")],
    },
    ext_modules=[Extension("encodec_fast.kernels.cpu.engine", sources=[])],
    cmdclass={"build_ext": BuildEngine, "bdist_wheel": AnyPythonWheel},
)
