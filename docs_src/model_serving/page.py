"""A page to try the service in a browser."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

PAGE = Path(__file__).with_name("page.html")

router = APIRouter(include_in_schema=False)


@router.get("/")
async def show_page() -> FileResponse:
    return FileResponse(PAGE)
