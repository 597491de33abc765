from fastapi.testclient import TestClient

from .app import app

with TestClient(app):  # runs the application in one event loop
    TestClient(app).get("/users/1")  # and this request in another
