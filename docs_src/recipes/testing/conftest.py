from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from fastapi.testclient import TestClient

from .main import app
from .reviews import Model, load_model

Override = Callable[[Callable[..., Any], Callable[..., Any]], None]


class QuickModel(Model):
    def judge(self, text: str) -> str:
        return "neutral"


@pytest.fixture(scope="session", autouse=True)
def quick_model() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(app.dependency_overrides, load_model, QuickModel)
        yield


@pytest.fixture(scope="session")
def client(quick_model: None) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture
def override(monkeypatch: pytest.MonkeyPatch) -> Override:
    return partial(monkeypatch.setitem, app.dependency_overrides)
