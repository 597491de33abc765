"""The page of docs_src/model_serving, in a real browser, served by a real server."""

import base64
import hashlib
import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, Page, expect

from docs_src.model_serving.page import PAGE
from tests.browsing import chromium
from tests.serving import BUNDLED, ServerProcess, save_second_version

pytestmark = pytest.mark.server

BUNDLED_VERSION = "53aa51172d14"
TIMEOUT_MS = 60_000
expect.set_options(timeout=TIMEOUT_MS)

Swap: TypeAlias = Callable[[Path | None], int]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server; to the end, it has been asked only for what there is."""
    with ServerProcess(
        MODEL_SERVING_ADMIN_TOKEN="secret",
        MODEL_SERVING_DEVICE="cpu",
        MODEL_SERVING_SWAP_POLICY="resource_preserving",  # So that it can be without a model.
    ) as server:
        yield server
        server.process.terminate()
        server.wait()
    assert " 404 " not in server.output


@pytest.fixture(scope="module")
def url(server: ServerProcess) -> str:
    return server.read_until(r"curl -s (http://127\.0\.0\.1:\d+)/similarity")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page in a new tab. It asks nobody but its server, and nothing goes wrong in it."""
    requested: list[str] = []
    complaints: list[str] = []
    with browser.new_context(reduced_motion="reduce") as context:
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        yield page
    assert all(address.startswith(f"{url}/") for address in requested), requested
    # That is how the browser tells of an answer that is an error, which some tests ask for.
    unexpected = [text for text in complaints if not text.startswith("Failed to load resource:")]
    assert not unexpected


@pytest.fixture
def swap(page: Page, url: str) -> Iterator[Swap]:
    """Lets the model in a directory serve, and returns the status; at the end, the bundled one."""

    def swap_to(directory: Path | None) -> int:
        answer = page.request.post(
            f"{url}/admin/model",
            headers={"Authorization": "Bearer secret"},
            data={"directory": directory and str(directory)},
        )
        return answer.status

    yield swap_to
    assert swap_to(None) == 200


def submit(page: Page, query: str, *sentences: str) -> None:
    page.get_by_label("Query").fill(query)
    page.get_by_label("Sentences").fill("\n".join(sentences))
    page.get_by_role("button").click()


def read_ranking(page: Page, query: str) -> list[list[str]]:
    """Wait for the ranking for a query; return rank, sentence, and score of each row."""
    table = page.get_by_role("table", name=f"Closest to “{query}” first")
    expect(table).to_be_visible()
    rows: list[list[str]] = table.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    )
    return rows


def read_bars(page: Page) -> list[dict[str, float]]:
    """Where each bar begins and ends, as fractions of its track."""
    bars: list[dict[str, float]] = page.locator(".bar").evaluate_all("""bars => bars.map(bar => {
        const track = bar.getBoundingClientRect(), fill = bar.firstChild.getBoundingClientRect();
        const fraction = x => (x - track.left) / track.width;
        return { start: fraction(fill.left), end: fraction(fill.right) };
    })""")
    return bars


def has_horizontal_scroll(page: Page) -> bool:
    root = "document.documentElement"
    return bool(page.evaluate(f"{root}.scrollWidth > {root}.clientWidth"))


@pytest.mark.parametrize("tag", ["style", "script"])
def test_the_page_allows_what_it_has_and_nothing_else(tag: str) -> None:
    """Else no browser runs it."""
    text = PAGE.read_text()
    [body] = re.findall(rf"^<{tag}>(.*?)^</{tag}>", text, re.DOTALL | re.MULTILINE)
    allowed = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    assert f"{tag}-src 'sha256-{allowed}'" in text


def test_sentences_are_ranked(page: Page) -> None:
    expect(page.locator("#serving")).to_have_text(
        f"Ready all-MiniLM-L6-v2, version {BUNDLED_VERSION}"
    )
    with page.expect_response("**/similarity") as response:
        submit(
            page,
            "How do I reset my password?",
            "The stock market fell today.",
            "I forgot my login credentials.",
            "",
            "Where is the key of this door?",
        )
    answer: dict[str, Any] = response.value.json()
    assert [result["index"] for result in answer["results"]] == [1, 2, 0]
    assert read_ranking(page, "How do I reset my password?") == [
        [str(rank), result["text"], f"{result['score']:.3f}"]
        for rank, result in enumerate(answer["results"], start=1)
    ]
    for bar, result in zip(read_bars(page), answer["results"], strict=True):
        assert bar["start"] == 0
        assert bar["end"] == pytest.approx(result["score"], abs=0.01)
    expect(page.locator("#model")).to_have_text("all-MiniLM-L6-v2")
    expect(page.locator("#version")).to_have_text(BUNDLED_VERSION)
    expect(page.locator("#batch-size")).to_have_text("4 texts")
    assert page.locator("#took").inner_text().endswith(" ms")
    expect(page.get_by_role("status")).to_contain_text("I forgot my login credentials.")


def test_negative_scores_go_to_the_other_side(page: Page) -> None:
    meal, stocks = "A man is having a meal.", "The stock market fell today."
    submit(page, "A man is eating a meal", stocks, meal)
    [first, second] = read_ranking(page, "A man is eating a meal")
    assert first == ["1", meal, "0.926"]
    assert second[:2] == ["2", stocks]
    assert second[2].startswith("\N{MINUS SIGN}0.0")
    [right, left] = read_bars(page)
    assert 0 == left["start"] < left["end"] == pytest.approx(right["start"], abs=0.01)
    assert right["start"] < right["end"] < 1


def test_example_and_keyboard(page: Page) -> None:
    page.get_by_label("Sentences").press("Control+Enter")
    assert len(read_ranking(page, "How do I reset my password?")) == 6
    page.get_by_label("Query").fill("bread")
    page.get_by_label("Query").press("Enter")
    assert read_ranking(page, "bread")[0][1] == "Bake the bread for forty minutes."


def test_html_is_text(page: Page) -> None:
    html = "<img src=x onerror=document.title='run'><b>bold</b> &amp; <script>no</script>"
    submit(page, html, html)
    assert read_ranking(page, html) == [["1", html, "1.000"]]
    assert page.locator("img, table b").count() == 0
    assert page.title() == "Sentence embeddings"


def test_another_version_serves_after_a_swap(page: Page, swap: Swap, tmp_path: Path) -> None:
    submit(page, "one", "two")
    read_ranking(page, "one")
    second = save_second_version(tmp_path / "second")
    assert swap(second) == 200
    expect(page.locator("#version")).to_have_text(BUNDLED_VERSION)  # It tells who answered.

    submit(page, "three", "four")
    read_ranking(page, "three")
    expect(page.locator("#model")).to_have_text("second")
    version = page.locator("#version").inner_text()
    assert version != BUNDLED_VERSION
    expect(page.locator("#serving")).to_have_text(f"Ready second, version {version}")
    page.reload()
    expect(page.locator("#serving")).to_have_text(f"Ready second, version {version}")


def test_no_model_serves(page: Page, swap: Swap, tmp_path: Path) -> None:
    broken = shutil.copytree(BUNDLED, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    assert swap(broken) == 503

    submit(page, "one", "two")
    expect(page.get_by_role("alert")).to_have_text(
        "No model is loaded: the last one that was asked for could not be loaded."
    )
    expect(page.locator("#serving")).to_have_text("Not ready: no model")
    expect(page.get_by_role("table")).to_be_hidden()

    assert swap(None) == 200
    page.get_by_role("button").click()
    read_ranking(page, "one")
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.locator("#serving")).to_contain_text("Ready all-MiniLM-L6-v2")


def test_problems_take_the_place_of_an_older_ranking(page: Page) -> None:
    submit(page, "one", "two")
    read_ranking(page, "one")

    submit(page, "one", " ", "")
    alert = page.get_by_role("alert")
    expect(alert).to_have_text("Sentences: Send at least 1 text: the list is empty.")
    expect(page.get_by_role("table")).to_be_hidden()
    sentences = page.get_by_label("Sentences")
    expect(sentences).to_have_attribute("aria-invalid", "true")
    expect(sentences).to_have_accessible_description(alert.inner_text())
    expect(page.get_by_label("Query")).to_have_attribute("aria-invalid", "false")

    submit(page, "x" * 8_001, "fine", *["x" * 8_001] * 6)
    too_long = "Send at most 8,000 characters in a text: this one has 8,001."
    assert alert.locator("p").nth(5).inner_text() == "…and 2 more."
    assert alert.locator("p").all_inner_texts()[:2] == [
        f"Query: {too_long}",
        f"Sentence 2: {too_long}",
    ]

    submit(page, "one", "two")
    read_ranking(page, "one")
    expect(alert).to_be_empty()
    expect(sentences).to_have_attribute("aria-invalid", "false")


def test_server_cannot_be_reached(page: Page) -> None:
    submit(page, "one", "two")
    read_ranking(page, "one")
    page.context.set_offline(True)
    page.get_by_role("button").click()
    expect(page.get_by_role("alert")).to_contain_text("The server could not be reached.")
    expect(page.get_by_role("table")).to_be_hidden()
    expect(page.locator("#serving")).to_have_text("Not ready: no answer")


def test_new_request_supersedes_the_one_under_way(page: Page, server: ServerProcess) -> None:
    submit(page, "older", "two")
    read_ranking(page, "older")
    button, results = page.get_by_role("button"), page.get_by_role("region", name="Ranking")
    server.process.send_signal(signal.SIGSTOP)
    try:
        submit(page, "never", "two")
        expect(button).to_have_text("Ranking…")
        expect(results).to_have_attribute("aria-busy", "true")
        with page.expect_event("requestfailed") as failed:
            submit(page, "newer", "two")
        assert "never" in (failed.value.post_data or "")
        expect(button).to_have_text("Ranking…")
    finally:
        server.process.send_signal(signal.SIGCONT)
    read_ranking(page, "newer")
    expect(button).to_have_text("Rank")
    expect(results).not_to_have_attribute("aria-busy", "true")
    expect(page.get_by_role("alert")).to_be_empty()


def test_light_and_dark(page: Page) -> None:
    colors = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colors += page.evaluate(
            "(({ backgroundColor, color }) => [backgroundColor, color])"
            "(getComputedStyle(document.body))"
        )
    assert len(set(colors)) == 4


def test_narrow(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    assert not has_horizontal_scroll(page)
    long = "unbroken" * 40
    submit(page, long, long, "short")
    assert read_ranking(page, long)[0] == ["1", long, "1.000"]
    assert not has_horizontal_scroll(page)
    # It is below the form, so it is brought to the top.
    box = page.get_by_role("table").bounding_box()
    assert box is not None
    assert 0 <= box["y"] < 200

    submit(page, long, "x" * 8_001)
    expect(page.get_by_role("alert")).to_be_in_viewport()
    assert not has_horizontal_scroll(page)
