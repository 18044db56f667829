"""A report as one HTML file without outside parts, with a timeline of each failed race."""

from __future__ import annotations

import html
from typing import Any

from perdure.conformance.register import Status
from perdure.conformance.report import Report, Result

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#212121;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}code,pre{font:13px ui-monospace,monospace}
pre{background:#f5f5f5;padding:.6rem;overflow-x:auto;white-space:pre-wrap}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.25rem .5rem;border-bottom:1px solid #e0e0e0;vertical-align:top}
.PASSED{color:#2e7d32}.FAILED{color:#c62828;font-weight:600}.ERROR{color:#e65100;font-weight:600}.NOT_DECLARED{color:#616161}
.verdict{font-size:1.3rem;font-weight:600}.facts td:first-child{color:#616161;width:14rem}
details{margin:.4rem 0}summary{cursor:pointer}
@media (prefers-color-scheme:dark){body{background:#121212;color:#e0e0e0}pre{background:#1e1e1e}th,td{border-color:#333}
.PASSED{color:#81c784}.FAILED{color:#ef9a9a}.ERROR{color:#ffb74d}.NOT_DECLARED,.facts td:first-child{color:#9e9e9e}}
"""


def timeline(rows: list[dict[str, Any]]) -> str:
    """One bar per call of a race: when it was inside, and how it ended."""
    end = max((r["to"] for r in rows), default=1) or 1
    height = 18 * len(rows) + 22
    bars = []
    for i, row in enumerate(rows):
        x, width = 200 + 560 * row["from"] / end, max(2, 560 * (row["to"] - row["from"]) / end)
        color = "#2e7d32" if row["outcome"] == "won" else "#90a4ae" if row["outcome"] == "AlreadyExists" else "#e65100"
        label = html.escape(f"{row['outcome']}, {row['from']}–{row['to']} µs")
        bars.append(
            f'<text x="0" y="{18 * i + 14}" font-size="12" fill="currentColor">{html.escape(row["who"])}</text>'
            f'<rect x="{x:.1f}" y="{18 * i + 3}" width="{width:.1f}" height="13" fill="{color}"><title>{label}</title></rect>'
            f'<text x="{min(x + width + 4, 765):.1f}" y="{18 * i + 14}" font-size="11" fill="currentColor">{html.escape(row["outcome"])}</text>'
        )
    axis = f'<text x="200" y="{height - 4}" font-size="11" fill="currentColor">0</text>'
    axis += f'<text x="740" y="{height - 4}" font-size="11" fill="currentColor">{end} µs</text>'
    return f'<svg viewBox="0 0 900 {height}" role="img" aria-label="timeline of the race">{"".join(bars)}{axis}</svg>'


def details(result: Result) -> str:
    parts = []
    if result.expected:
        parts.append(f"<p>Expected: {html.escape(result.expected)}</p>")
    if result.seen:
        parts.append(f"<p>Seen: {html.escape(result.seen)}</p>")
    if result.timeline:
        parts.append(timeline(result.timeline))
    if result.calls:
        parts.append(f"<p>Last calls</p><pre>{html.escape(chr(10).join(result.calls))}</pre>")
    if result.traceback and result.status is Status.ERROR:
        parts.append(f"<details><summary>Traceback</summary><pre>{html.escape(result.traceback)}</pre></details>")
    parts.append(f"<p>Repeat: <code>{html.escape(result.command)}</code></p>")
    return "".join(parts)


def facts(report: Report) -> str:
    rows = [
        ("subject", report.subject), ("plugin", report.plugin), ("suite", report.suite), ("perdure", report.perdure),
        ("started", report.started), ("seconds", f"{report.seconds:.1f}"), ("seed", report.seed),
        ("machine", ", ".join(f"{k} {v}" for k, v in report.machine.items())),
        ("declared", ", ".join(f"{k}={v}" for k, v in report.capabilities.items())),
        ("shown", ", ".join(f"{k}={v}" for k, v in report.shown.items())),
        ("latency", "; ".join(f"{k} median {v['median_ms']} ms, worst {v['worst_ms']} ms" for k, v in report.latency.items())),
        ("not removed", "; ".join(report.leftovers) or "nothing"),
    ]  # fmt: skip
    return "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in rows)


def row(result: Result) -> str:
    e = result.evidence
    overlap = "" if e.overlap is None else f"{e.overlap:.0%}"
    faults = f"{e.faults_fired}/{e.faults_planned}" if e.faults_planned else ""
    numbers = "; ".join(f"{k}: {v}" for k, v in e.numbers.items())
    reason = result.reason if result.status is Status.NOT_DECLARED else ""
    return (
        f"<tr><td>{result.case.id}</td><td>{result.case.level.value}</td><td>{html.escape(result.case.rule)}</td>"
        f'<td class="{result.status}">{result.status}</td><td>{html.escape(result.case.sentence)}'
        f"<br><small>{html.escape('; '.join(x for x in (result.certainty, reason, numbers, *e.notes) if x))}</small></td>"
        f"<td>{result.seconds:.2f}</td><td>{e.assertions}</td><td>{e.rounds or ''}</td><td>{overlap}</td><td>{faults}</td></tr>"
    )


def to_html(report: Report) -> str:
    """The whole report as one page."""
    counts = " · ".join(f'<span class="{s}">{report.count(s)} {s}</span>' for s in Status)
    bad = [r for r in report.results if r.status in (Status.FAILED, Status.ERROR)]
    failures = "".join(
        f'<h2 class="{r.status}" id="{r.case.id}">{r.case.id}: {html.escape(r.case.sentence)}</h2>{details(r)}'
        for r in bad
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Conformance of {html.escape(report.subject)}</title><style>{STYLE}</style>"
        f"<h1>Conformance of <code>{html.escape(report.subject or report.kind)}</code></h1>"
        f'<p class="verdict">{html.escape(report.verdict)}</p><p>{counts}</p>'
        f'<table class="facts">{facts(report)}</table>{failures}<h2>All cases</h2>'
        "<table><tr><th>case<th>level<th>rule<th>status<th>what<th>s<th>assertions<th>rounds<th>overlap<th>faults</tr>"
        f"{''.join(row(r) for r in report.results)}</table></html>\n"
    )
