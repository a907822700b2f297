"""The other examples of the README, run as they stand."""

import contextlib
import io
import json
import re
import subprocess
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
URL = "http://127.0.0.1:7860"


@pytest.mark.parametrize("library", ["openai", "anthropic"])
def test_the_script_of(app, library) -> None:
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if f"from {library}" in code)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(code.replace(URL, app.url), {})
    assert "Paris" in shown.getvalue()


def test_the_curl_command(app) -> None:
    (command,) = (code for code in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if code.startswith("curl"))
    shown = subprocess.run(["sh", "-c", command.replace(URL, app.url)], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["choices"][0]["message"]["content"]
