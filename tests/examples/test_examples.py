"""Every example runs, and so does every Python block of the READMEs."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
READMES = [ROOT / "README.md", ROOT / "tca_sb3" / "README.md", ROOT / "tca_envs" / "README.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [(readme, n, code) for readme in READMES for n, code in enumerate(BLOCK.findall(readme.read_text()))]


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec.loader.exec_module(module)
    return module


def test_there_are_examples_and_blocks() -> None:
    assert len(EXAMPLES) >= 7
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(path, monkeypatch)
    if path.stem == "01_meta_pwr":
        module.main(timesteps=256, out=tmp_path)
        assert (tmp_path / "meta_pwr.zip").exists()
        assert list((tmp_path / "weights").glob("credit_*.png"))
    elif path.stem == "06_whole_episodes":
        assert module.main(timesteps=256) > 0, "CartPole's lengths differ, so some steps must lie beyond the quota"
    elif path.stem == "07_credit_explorer":
        assert "leave the umbrella" in module.main(timesteps=2560, out=tmp_path).read_text(encoding="utf-8")
    else:
        module.main(timesteps=256)


@pytest.mark.parametrize(("readme", "n", "code"), BLOCKS, ids=lambda value: str(value)[-24:] if value != 0 else "0")
def test_readme_block(readme: Path, n: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, but for the number of steps."""
    monkeypatch.chdir(tmp_path)
    exec(compile(re.sub(r"learn\([\d_]+", "learn(64", code), f"{readme.name} block {n}", "exec"), {})


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = load(ROOT / "examples" / "demo.py", monkeypatch)
    demo.main(["--out", str(tmp_path / "demo"), "--scale", "quick", "--jobs", "1"])
    page = (tmp_path / "demo" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "$" not in re.sub(r"base64,[^\"]*", "", page), "a placeholder was not filled in"
    for method in demo.METHODS:
        assert f"<td>{method}</td>" in page


def test_first_and_last_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = load(ROOT / "examples" / "demo.py", monkeypatch)
    import numpy as np

    assert demo.first_and_last_reach(np.array([0.0, 4.0, 1.0, 4.0, 4.0]), 3.8) == (1.0, 3.0)
    assert demo.first_and_last_reach(np.array([4.0, 4.0]), 3.8) == (0.0, 0.0)
    first, stays = demo.first_and_last_reach(np.array([0.0, 4.0, 1.0]), 3.8)
    assert first == 1.0
    assert np.isnan(stays)
