"""Who imports whom, read from the source; and that `import encodec_fast` does nothing else."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.venvs import ROOT

# A module imports only from layers above its own. A new module is one more name here.
_LAYERS = [
    {
        "errors",
        "forks",
        "frame_codec",
        "kernels",
        "pages",
        "patterns",
        "processes",
        "sample_formats",
        "signals",
        "transformers_versions",
        "wording",
    },
    {"language_model", "plan"},
    {"compression"},
    {"backends"},
    {"serving"},
    {"chunks"},
    {"exported"},
    {"model"},
    {"acceleration", "audio", "explanation", "formats", "streaming", "verify"},
    {"quality"},
    {"checkpoints", "corpus", "demo", "graphs"},
    {"pretrained"},
    {"codec", "dataset", "training"},
    {"cli"},
    {"__main__"},
]
_RANK = {name: rank for rank, layer in enumerate(_LAYERS) for name in layer}
# These stand on their own: they import nothing of the package.
_LEAVES = {
    "errors",
    "processes",
    "forks",
    "frame_codec",
    "kernels",
    "pages",
    "transformers_versions",
    "audio",
    "patterns",
    "sample_formats",
}
# Tools that only look at codes need not load torch.
_TORCH_FREE = {"audio", "compression", "errors", "processes", "corpus", "formats", "forks", "pages"}
_SOURCES = sorted([*(ROOT / "encodec_fast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def _module(path: Path) -> str:
    """The dotted name that `path` has once installed."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("encodec_fast", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts).removesuffix(".__init__")


def _unit(module: str) -> str:
    """The name in _LAYERS that `encodec_fast.x.y` belongs to, or "" for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def _imports(path: Path) -> Iterator[str]:
    """Every dotted name that `path` imports, anywhere in it, and what it uses of a plain `import encodec_fast`."""
    package = _module(path).split(".") if path.name == "__init__.py" else _module(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name != "encodec_fast")
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "encodec_fast":
            yield f"encodec_fast.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", _SOURCES, ids=_module)
def test_a_module_imports_only_from_the_layers_above_it(path):
    unit = _unit(_module(path))
    if unit == "":  # the package itself forwards to all of them, on first use
        return
    assert unit in _RANK, f"give {unit!r} its place in _LAYERS"
    for name in _imports(path):
        top, _, rest = name.partition(".")
        assert top not in ("tests", "bench", "kernels"), f"{path} imports {name}"
        if top != "encodec_fast" or rest == "__version__" or _unit(name) == unit:
            continue
        assert _unit(name) in _RANK, f"{path} imports {name}: name its module, and give that a place in _LAYERS"
        assert unit not in _LEAVES, f"{path} imports {name}, but {unit} stands on its own"
        assert _RANK[_unit(name)] < _RANK[unit], f"{path} imports {name}, which lies in no layer above it"


@pytest.mark.parametrize("path", [path for path in _SOURCES if _unit(_module(path)) in _TORCH_FREE], ids=_module)
def test_a_format_loads_no_torch(path):
    script = f"import sys, {_module(path)}; print('torch' in sys.modules or 'transformers' in sys.modules)"
    assert _python(script) == "False\n"


def test_public_names_do_not_depend_on_what_was_imported_before():
    # a module sets its name in the package when it is loaded, over a function of that name
    modules = [_module(path) for path in _SOURCES if path.parent.name == "encodec_fast" and path.stem != "__main__"]
    script = f"import types, encodec_fast as e, {', '.join(modules)}\n"
    script += "print([name for name in e.__all__ if isinstance(getattr(e, name), types.ModuleType)])"
    assert _python(script) == "[]\n"


_OBSERVE = """
import json, os, sys, time
before, start = dict(os.environ), time.perf_counter()
import encodec_fast
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "environment_kept": dict(os.environ) == before,
    "loaded": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""


@pytest.fixture(scope="module")
def observed() -> dict:
    output = _python(_OBSERVE)
    assert output.count("\n") == 1, f"import encodec_fast printed: {output}"
    return json.loads(output)


def test_the_import_prints_nothing_and_keeps_the_environment(observed):
    assert observed["environment_kept"]


def test_the_import_loads_nothing_heavy(observed):
    heavy = {"numpy", "pyarrow", "ray", "soundfile", "soxr", "torch", "transformers", "triton", "typer"}
    assert not heavy & set(observed["loaded"])


def test_the_import_is_quick(observed):
    # 0.01 s on an idle machine; loading torch alone takes more than a second
    assert observed["seconds"] < 0.5


def _python(script: str) -> str:
    """What `script` prints, to standard output or standard error, in an interpreter of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([sys.executable, "-Ic", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
