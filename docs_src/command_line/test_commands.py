from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from .app import app, get_session
from .commands import cli


class FakeSession:
    def __init__(self) -> None:
        self.names: list[str] = []

    def execute(self, statement: str, values: list[str]) -> None:
        self.names += values


@pytest.fixture
def session() -> Iterator[FakeSession]:
    session = FakeSession()
    app.dependency_overrides[get_session] = lambda: session
    yield session
    app.dependency_overrides.clear()


def test_add_user(session: FakeSession) -> None:
    result = CliRunner().invoke(cli, ["add-user", "Ada"])
    assert result.exit_code == 0
    assert result.output == "added Ada\n"
    assert session.names == ["Ada"]
