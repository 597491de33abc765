"""A page to try the service in a browser."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

PAGE = Path(__file__).with_name("page.html")
# What the page may load is said in the page itself.
HEADERS = {
    "Cache-Control": "no-cache",  # The browser asks each time whether it has changed.
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def show_page() -> FileResponse:
    return FileResponse(PAGE, headers=HEADERS)
