from fastapi_lifespan_deps import lifespan_graph

from .main import app


def test_what_starts() -> None:
    names = [node.name for node in lifespan_graph(app).nodes]
    assert names == ["get_settings", "get_pool", "get_model", "get_index"]
