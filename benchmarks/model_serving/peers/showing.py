"""What comes out: tables for the terminal, the same in Markdown, and who is missing."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from benchmarks.model_serving import swaps, texts

from .measuring import OURS

Rows = list[dict[str, Any]]


def tables(result: dict[str, Any]) -> Iterator[Table]:
    if result["rows"]:
        yield speed(result)
        yield cost(result)


def speed(result: dict[str, Any]) -> Table:
    rows: Rows = result["rows"]
    machine = result["machine"]
    table = Table(
        title=f"Beside other model servers: {machine['torch_threads']} torch threads, float32",
        caption="; ".join(f"{load}: {texts.DESCRIPTIONS[load]}" for load in texts.LOADS)
        + f"\nMedians of {len(rows[0]['rounds'])} rounds, ratios within the round. The client's"
        f" process was busy {max(row['client_busy'] for row in rows):.0%} of the time at most."
        f" Load of the machine before: {machine['load']:.1f}.",
        caption_justify="left",
        **swaps.STYLE,
    )
    table.add_column("texts,\nclients", no_wrap=True)
    table.add_column("", no_wrap=True)
    for heading in ("req/s", "least\n- most", "ours ÷\nit", "p50\nms", "p99\nms", "CPU\nms"):
        table.add_column(heading, justify="right", no_wrap=True)
    before = None
    for row in rows:
        rates = [burst["requests_per_second"] for burst in row["rounds"]]
        cell = f"{row['texts']}, {row['clients']}"
        if before not in (None, cell):
            table.add_section()
        table.add_row(
            "" if cell == before else cell,
            named(row["contestant"], result),
            f"{row['requests_per_second']:,.0f}",
            f"{min(rates):.0f} - {max(rates):.0f}",
            styled(row),
            f"{row['p50'] * 1e3:,.1f}",
            f"{row['p99'] * 1e3:,.1f}",
            f"{row['cpu_seconds'] * 1e3:,.1f}",
        )
        before = cell
    return table


def styled(row: dict[str, Any]) -> str:
    if row["contestant"] == OURS:
        return ""
    style = "green" if row["ours_to_it"] > 1 else "bold red"
    return f"[{style}]{row['ours_to_it']:.2f}"


def cost(result: dict[str, Any]) -> Table:
    table = Table(title="After all that: the server's processes", **swaps.STYLE)
    table.add_column("", no_wrap=True)
    for heading in COST:
        table.add_column(heading, justify="right")
    for name, about in result["about"].items():
        if name not in result["left_out"]:
            table.add_row(named(name, result), *costs(about))
    return table


COST = ("processes", "memory, MB", "resident, MB", "cores while idle", "largest difference")


def costs(about: dict[str, Any]) -> list[str]:
    memory = about["memory"]
    return [
        f"{memory['processes']}",
        f"{memory['proportional'] / 1e6:,.0f}",
        f"{memory['resident'] / 1e6:,.0f}",
        f"{about['idle_cpu']:.2f}",
        f"{about['difference']:.0e}" if "difference" in about else "",
    ]


def named(name: str, result: dict[str, Any]) -> str:
    version = result["about"][name].get("version")
    return f"{name} {version}" if version else name


def markdown(result: dict[str, Any]) -> str:
    """The same, ready for the page."""
    rows: Rows = result["rows"]
    cells = list(dict.fromkeys((row["texts"], row["clients"]) for row in rows))
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    found = {(row["contestant"], row["texts"], row["clients"]): row for row in rows}

    def table(first: str, headings: list[str], values: dict[str, list[str]]) -> list[str]:
        lines = [[first, *headings], ["---"] * (len(headings) + 1)]
        lines += [[shown(name, result), *values[name]] for name in names]
        return [f"| {' | '.join(line)} |" for line in lines] + [""]

    def by_cell(show: Any) -> dict[str, list[str]]:
        return {name: [show(found[name, *cell]) for cell in cells] for name in names}

    headings = [f"{load}, {clients} client{'s' * (clients > 1)}" for load, clients in cells]
    memory = {name: costs(result["about"][name])[:4] for name in names}
    lines = table("requests per second", headings, by_cell(rate_and_ratio))
    lines += table("p50 / p99, ms", headings, by_cell(p50_and_p99))
    lines += table("", list(COST[:4]), memory)
    return "\n".join(lines)


def shown(name: str, result: dict[str, Any]) -> str:
    return f"**{name}**" if name == OURS else named(name, result)


def rate_and_ratio(row: dict[str, Any]) -> str:
    rate = f"{row['requests_per_second']:,.0f}"
    return f"**{rate}**" if row["contestant"] == OURS else f"{rate} ({row['ours_to_it']:.2f})"


def p50_and_p99(row: dict[str, Any]) -> str:
    return " / ".join(f"{row[name] * 1e3:,.{row[name] < 0.1:d}f}" for name in ("p50", "p99"))


def said(result: dict[str, Any]) -> Iterator[str]:
    """The tables for the page, how each was set up, and who was not measured, and why."""
    if result["rows"]:
        yield markdown(result)
    for name, about in result["about"].items():
        if "settings" in about:
            took = f"installed in {about['set_up_seconds']:.0f} s"
            yield f"{named(name, result)}: {about['settings']}; {took}"
    for name, reason in result["left_out"].items():
        yield f"left out: {name}: {reason}"
