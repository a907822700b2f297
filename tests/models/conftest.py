"""What a model takes hangs on whether there are kernels: here there are those that a test loads itself."""

import pytest

from llmsvc.engine import kernels


@pytest.fixture(autouse=True)
def no_kernels_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_library", None)
