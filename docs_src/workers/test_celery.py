from pathlib import Path

import pytest

from .celery_app import Engine, container, get_engine, place_order, ship_order


def test_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(str(tmp_path / "test.db"))
    monkeypatch.setitem(container.dependency_overrides, get_engine, lambda: engine)
    with container.sync():
        assert place_order("tea") == 3
        assert ship_order.apply(["tea"]).get() == 3
