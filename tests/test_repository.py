"""The repository keeps its own rules: who imports whom, which equation stands where, what the packages contain."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("tca_envs", "tca_sb3")
# Needs torch and gymnasium only. lvgts and tvt are algorithms; the rest of tca_sb3 is SB3's side.
CORE = ("episodes", "returns", "objectives", "inner", "directional", "meta", "weights", "estimators")


def sources(package: str, root: Path = ROOT) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if "build" in parts or any(part.endswith(".egg-info") for part in parts):
            continue
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(path: Path, late: bool = True) -> Iterator[str]:
    """Dotted names imported by a file, ``from a import b`` as ``a.b``; without ``late``, only at import time."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative imports hide the direction"
                assert child.module is not None
                yield child.module
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            elif late or not (is_type_checking(child) or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
                yield from walk(child)

    yield from walk(ast.parse(path.read_text()))


@pytest.mark.parametrize(("package", "stranger"), [PACKAGES, PACKAGES[::-1]])
def test_the_packages_do_not_know_each_other(package: str, stranger: str) -> None:
    files = sources(package)
    assert files
    for name, path in files.items():
        for imported in imports(path):
            assert imported.split(".")[0] != stranger, f"{name} imports {imported}"


def test_the_core_does_not_know_sb3() -> None:
    files = {
        name: path
        for name, path in sources("tca_sb3").items()
        if len(name.split(".")) > 1 and name.split(".")[1] in CORE
    }
    assert {name.split(".")[1] for name in files} == set(CORE)
    for name, path in files.items():
        for imported in imports(path):
            top, *rest = imported.split(".")
            assert top != "stable_baselines3", f"{name} imports {imported}"
            if top == "tca_sb3":
                assert rest and rest[0] in CORE, f"{name} imports {imported}, which is not of the core"


def test_environments_need_gymnasium_and_numpy_only() -> None:
    """Anything else is an extra, and imported where it is used."""
    allowed = {"gymnasium", "numpy", "tca_envs", *sys.stdlib_module_names}
    for name, path in sources("tca_envs").items():
        for imported in imports(path, late=False):
            assert imported.split(".")[0] in allowed, f"{name} imports {imported}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_module_imports_only_upstream_of_itself(package: str) -> None:
    files = sources(package)
    graph = {
        name: {
            target for imported in imports(path, late=False) if (target := nearest(imported, files)) not in (None, name)
        }
        for name, path in files.items()
    }
    # A package's __init__ gathers what lies below it; importing a.b also runs a, which is no edge of the design.
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> None:
        assert name not in path, " imports ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for target in sorted(t for t in graph[name] if t is not None):
            visit(target)
        path.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)
    assert done == set(files)


def nearest(imported: str, files: dict[str, Path]) -> str | None:
    """The module of ours that an imported name stands for or in."""
    while imported:
        if imported in files:
            return imported
        imported = imported.rpartition(".")[0]
    return None


# -- equations ------------------------------------------------------------------------------------------------------

REFERENCE = re.compile(r"\bEqs?\.\s+(\d+(?:(?:\s*(?:,|and|-)\s*)+\d+)*)")


def equations_in(text: str) -> set[int]:
    """``Eq. 8``, ``Eqs. 10, 11``, ``Eqs. 4 and 7-11`` as numbers."""
    numbers: set[int] = set()
    for found in REFERENCE.findall(text):
        for first, last in re.findall(r"(\d+)(?:\s*-\s*(\d+))?", found):
            numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def documented() -> dict[str, set[int]]:
    """What ``EQUATIONS.md`` says: the equations of each object."""
    table: dict[str, set[int]] = {}
    for line in (ROOT / "tca_sb3" / "EQUATIONS.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| Eq") and cells[0] != "Equation":
            (name,) = re.findall(r"^`([\w.]+)`$", cells[1])
            table.setdefault(name, set()).update(equations_in(cells[0]))
    return table


def modules() -> dict[str, ModuleType]:
    return {name: importlib.import_module(name) for name in sources("tca_sb3")}


def of_second_paper(name: str) -> bool:
    """Whether an object or a module leans on the LVGTS paper, whose equations count anew."""
    return name.removeprefix("tca_sb3.").split(".")[0] == "lvgts"


def public_objects() -> Iterator[tuple[str, Any]]:
    """Functions, classes and their methods, where they are defined."""
    for module_name, module in modules().items():
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module_name:
                continue
            if inspect.isfunction(thing) or inspect.isclass(thing):
                yield f"{module_name}.{name}".removeprefix("tca_sb3."), thing
            if inspect.isclass(thing):
                for attribute, method in vars(thing).items():
                    if not attribute.startswith("_") and inspect.isfunction(method):
                        yield f"{module_name}.{name}.{attribute}".removeprefix("tca_sb3."), method


def test_reading_references() -> None:
    assert equations_in("Eq. 8: and Eqs. 10, 11; (Eq.\n 14).") == {8, 10, 11, 14}
    assert equations_in("Eqs. 4 and 7-11 of 12") == {4, 7, 8, 9, 10, 11}
    assert equations_in("Equation 3, 5 Eq, Eqs. 9 and 10. Its") == {9, 10}


def test_equations_and_docstrings_agree() -> None:
    in_code = {name: equations_in(thing.__doc__ or "") for name, thing in public_objects()}
    assert {name: numbers for name, numbers in in_code.items() if numbers} == documented()


@pytest.mark.parametrize(("second", "wanted"), [(False, {4, *range(7, 17)}), (True, {2, 3, 4, 5, 7})])
def test_the_equations_of_a_paper_are_all_there(second: bool, wanted: set[int]) -> None:
    found = set().union(*(numbers for name, numbers in documented().items() if of_second_paper(name) == second))
    assert found >= wanted
    assert "adjoint" in (ROOT / "tca_sb3" / "EQUATIONS.md").read_text()
    for name, module in modules().items():
        if of_second_paper(name) == second:
            assert equations_in(module.__doc__ or "") <= found, name


def test_names_in_the_prose_of_the_equations_exist() -> None:
    text = (ROOT / "tca_sb3" / "EQUATIONS.md").read_text()
    for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", text):
        module, *attributes = name.split(".")
        thing: Any = importlib.import_module(f"tca_sb3.{module}")
        for attribute in attributes:
            if not hasattr(thing, attribute):
                importlib.import_module(f"{thing.__name__}.{attribute}")
            thing = getattr(thing, attribute)


# -- packages -------------------------------------------------------------------------------------------------------


def project(folder: str) -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11 to read pyproject.toml")
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_with_code_is_packaged(package: str) -> None:
    folders = sorted({".".join(path.parent.relative_to(ROOT).parts) for path in sources(package).values()})
    setuptools = project(package)["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == folders
    assert setuptools["package-dir"] == {package: "."}
    for name in setuptools["package-data"][package]:
        assert (ROOT / package / name).is_file(), name
    for folder in folders:
        assert (ROOT / folder.replace(".", "/") / "__init__.py").is_file(), f"{folder} needs an __init__.py"


def test_the_root_installs_both() -> None:
    root = project(".")
    assert root["tool"]["setuptools"]["packages"]["find"]["include"] == [f"{package}*" for package in PACKAGES]
    parts = [project(package) for package in PACKAGES]
    for part, package in zip(parts, PACKAGES, strict=True):
        data = root["tool"]["setuptools"]["package-data"][package]
        assert data == part["tool"]["setuptools"]["package-data"][package]
        assert root["project"]["requires-python"] == part["project"]["requires-python"]
        missing = set(part["project"]["dependencies"]) - set(root["project"]["dependencies"])
        assert not missing, f"the root's dependencies lack {missing} of {package}"
        for extra, wanted in part["project"].get("optional-dependencies", {}).items():
            assert root["project"]["optional-dependencies"].get(extra) == wanted, extra
    versions = {importlib.import_module(package).__version__ for package in PACKAGES}
    assert len(versions) == 1


def third_party(package: str) -> set[str]:
    tops = {name.split(".")[0] for path in sources(package).values() for name in imports(path, late=False)}
    return tops - set(sys.stdlib_module_names) - {package}


def test_dependencies_are_what_is_imported() -> None:
    distributions = {"stable_baselines3": "stable-baselines3"}
    # Stable-Baselines3 brings gymnasium, numpy and matplotlib along, as its own requirements.
    brought = {"gymnasium", "numpy", "matplotlib"}
    for package in PACKAGES:
        declared = {re.split(r"[<>=~! ]", line)[0] for line in project(package)["project"]["dependencies"]}
        needed = {distributions.get(name, name) for name in third_party(package)}
        if package == "tca_sb3":
            needed -= brought
        assert needed == declared


@pytest.mark.slow
@pytest.mark.parametrize(("package", "stranger"), [PACKAGES, PACKAGES[::-1]])
def test_each_wheel_imports_alone(package: str, stranger: str, tmp_path: Path) -> None:
    """From a wheel in a folder of its own, with its declared dependencies on the path and the other package absent."""
    copy = tmp_path / "source"
    listing = subprocess.run(
        ["git", "ls-files", "-z", package], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listing.split("\0")):
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            tmp_path,
            copy / package,
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {package}
    assert f"{package}/py.typed" in names
    modules = [name for name in sources(package, copy) if not name.endswith("__main__")]
    assert modules
    assert {f"{name.replace('.', '/')}" for name in modules} <= {
        name.removesuffix("/__init__.py").removesuffix(".py") for name in names
    }
    script = f"""
import importlib, sys
sys.path[:0] = {[str(unpacked), *site_packages()]!r}
for name in {modules!r}:
    module = importlib.import_module(name)
    assert module.__file__.startswith({str(unpacked)!r}), module.__file__
assert {stranger!r} not in sys.modules
try:
    import {stranger}
except ModuleNotFoundError:
    print("alone")
"""
    # -S keeps editable installs out: their hooks live in .pth files, which are not read.
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.stdout.strip() == "alone", done.stderr


def site_packages() -> list[str]:
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
