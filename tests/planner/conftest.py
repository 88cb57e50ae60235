from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from planner.cli.main import build_app

Meshwright = Callable[..., Result]


@pytest.fixture
def meshwright() -> Meshwright:
    """Return a function that runs one command line and gives its exit code, stdout and stderr."""

    def run(*words: object) -> Result:
        texts = [str(word) for word in words]
        return CliRunner().invoke(build_app(texts), texts, catch_exceptions=False)

    return run
