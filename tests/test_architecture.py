"""The arrows of docs/architecture.md."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "ui": {"ui", "http", "service", "accounts", "logs", "chat", "files", "models", "settings", "errors"},
    "http": {"http", "service", "accounts", "chat", "formats", "models", "settings", "rates", "logs", "errors"},
    "service": {"accounts", "chat", "files", "models", "store", "settings", "rates", "errors"},
    "accounts": {"store", "errors"},
    "chat": {"chat", "formats", "files", "models", "engine", "store", "rates", "logs", "errors"},
    "files": {"files", "store", "errors"},
    "models": {"models", "formats", "engine", "store", "errors"},
    "formats": {"formats", "errors"},
    "engine": {"engine", "errors"},
    "store": {"store", "errors"},
    "settings": {"models", "errors"},
    "rates": {"errors"},
    "logs": set(),
    "errors": set(),
}


@pytest.mark.parametrize("path", sorted(ROOT.glob("llmsvc/**/*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    room = path.relative_to(ROOT / "llmsvc").parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith("llmsvc."):
                assert name.split(".")[1] in MAY_IMPORT[room], f"{path} imports {name}"


def test_nothing_heavy_before_the_page() -> None:
    heavy = ("torch", "transformers", "pdfplumber", "lxml")
    code = f"import sys, llmsvc.ui.launch; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_readme_and_spaces_yaml_say_the_same() -> None:
    front = (ROOT / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front) == yaml.safe_load((ROOT / "spaces.yaml").read_text())


def test_spaces_use_the_pinned_gradio() -> None:
    version = yaml.safe_load((ROOT / "spaces.yaml").read_text())["sdk_version"]
    assert f"gradio=={version} " in (ROOT / "requirements.txt").read_text()
