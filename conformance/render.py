"""A report as text, JUnit XML, Markdown and a badge. Says what the report says, never more."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable

from perdure.conformance.register import Status
from perdure.conformance.render_html import to_html
from perdure.conformance.report import Report, Result


def failure_text(result: Result) -> str:
    """Everything about a case that did not pass: rule, expectation, what was seen, last calls, command."""
    case = result.case
    lines = [f"{result.status} {case.id} ({case.level.value}, rule {case.rule}): {case.sentence}"]
    if result.status is Status.NOT_DECLARED:
        lines.append(f"  {result.reason}")
        return "\n".join(lines)
    if result.expected:
        lines.append(f"  expected  {result.expected}")
    lines.append(f"  seen      {result.seen}")
    if result.evidence.notes:
        lines += [f"  note      {n}" for n in result.evidence.notes]
    if result.calls:
        lines.append("  last calls:")
        lines += [f"    {c}" for c in result.calls[-20:]]
    if result.status is Status.ERROR and result.traceback:
        lines += ["    " + x for x in result.traceback.strip().splitlines()[-6:]]
    lines.append(f"  repeat    {result.command}")
    return "\n".join(lines)


def to_text(report: Report) -> str:
    """The summary that stands at the end of a run."""
    out = [failure_text(r) for r in report.results if r.status in (Status.FAILED, Status.ERROR)]
    missing: dict[str, list[str]] = {}
    for r in report.results:
        if r.status is Status.NOT_DECLARED:
            missing.setdefault(r.reason, []).append(r.case.id)
    out += [f"NOT_DECLARED {', '.join(ids)}\n  {reason}" for reason, ids in missing.items()]
    notes = [f"{r.case.id}: {n}" for r in report.results for n in r.evidence.notes if r.status is Status.PASSED]
    if notes:
        out.append("Notes\n" + "\n".join(f"  {n}" for n in notes))
    speed = [r for r in report.results if r.case.measures and r.evidence.numbers]
    for r in speed:
        out.append(f"{r.case.id}\n" + "\n".join(f"  {k}: {v}" for k, v in r.evidence.numbers.items()))
    if report.leftovers:
        out.append("Could not be removed:\n" + "\n".join(f"  {x}" for x in report.leftovers))
    counts = ", ".join(f"{report.count(s)} {s}" for s in Status)
    out.append(
        f"{report.kind} {report.subject} · {report.plugin}\n"
        f"suite {report.suite}, perdure {report.perdure}, seed {report.seed}, {report.seconds:.1f} s: {counts}\n"
        f"{report.verdict}"
    )
    return "\n\n".join(out) + "\n"


def to_junit(report: Report) -> str:
    """JUnit XML: FAILED is a failure, ERROR an error, NOT_DECLARED skipped with its reason."""
    suite = ET.Element(
        "testsuite",
        name=f"perdure.conformance {report.suite} {report.kind}",
        tests=str(len(report.results)),
        failures=str(report.count(Status.FAILED)),
        errors=str(report.count(Status.ERROR)),
        skipped=str(report.count(Status.NOT_DECLARED)),
        time=f"{report.seconds:.3f}",
        timestamp=report.started.rstrip("Z"),
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in (("verdict", report.verdict), ("seed", report.seed), ("subject", report.subject)):
        ET.SubElement(properties, "property", name=name, value=str(value))
    for r in report.results:
        test = ET.SubElement(suite, "testcase", classname=r.case.group, name=r.case.id, time=f"{r.seconds:.3f}")
        if r.status is Status.FAILED:
            ET.SubElement(test, "failure", message=clean(f"{r.expected}; seen: {r.seen}")).text = clean(failure_text(r))
        elif r.status is Status.ERROR:
            ET.SubElement(test, "error", message=clean(r.seen)).text = clean(failure_text(r))
        elif r.status is Status.NOT_DECLARED:
            ET.SubElement(test, "skipped", message=clean(r.reason))
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"


def clean(text: str) -> str:
    """Without the characters that XML can't hold."""
    return "".join(
        c if c in "\n\t" or " " <= c < "\ud800" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "\ufffd" for c in text
    )


def to_markdown(report: Report) -> str:
    """One table: a row per group, then what did not pass."""
    groups: dict[str, list[Result]] = {}
    for r in report.results:
        groups.setdefault(r.case.group, []).append(r)
    out = [
        f"### `{report.subject or report.kind}`: {report.verdict}",
        "",
        f"{report.plugin} · suite {report.suite} · seed {report.seed} · {report.seconds:.0f} s · {report.started}",
        "",
        "| group | passed | failed | not declared | error |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, results in groups.items():
        numbers = [
            sum(r.status is s for r in results)
            for s in (Status.PASSED, Status.FAILED, Status.NOT_DECLARED, Status.ERROR)
        ]
        out.append(f"| {name} | " + " | ".join(str(n) if n else "" for n in numbers) + " |")
    for r in report.results:
        if r.status in (Status.FAILED, Status.ERROR):
            out += ["", f"- **{r.status} {r.case.id}** ({r.case.rule}): {r.case.sentence}  "]
            out += [f"  expected: {one_line(r.expected)}  "] if r.expected else []
            out += [f"  seen: {one_line(r.seen)}  ", f"  `{r.command}`"]
    gaps: dict[str, list[str]] = {}
    for r in report.results:
        if r.status is Status.NOT_DECLARED:
            gaps.setdefault(r.reason, []).append(r.case.id)
    if gaps:
        out += ["", "Not declared:"]
        out += [f"- {one_line(reason)}: {', '.join(ids)}" for reason, ids in gaps.items()]
    return "\n".join(out) + "\n"


def one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:400]


def to_badge(report: Report) -> str:
    """An SVG badge with the level, or without one."""
    left, right = "perdure conformance", report.verdict.split(":")[0].split(",")[0]
    color = {"FULL": "#2e7d32", "BASE": "#1565c0"}.get(right.split()[0], "#9e9e9e")
    a, b = 7 * len(left) + 12, 7 * len(right) + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{a + b}" height="20" role="img" aria-label="{left}: {right}">'
        f"<title>{left}: {right}</title>"
        f'<rect width="{a}" height="20" fill="#424242"/><rect x="{a}" width="{b}" height="20" fill="{color}"/>'
        '<g fill="#fff" font-family="Verdana,sans-serif" font-size="11" text-anchor="middle">'
        f'<text x="{a / 2}" y="14">{left}</text><text x="{a + b / 2}" y="14">{right}</text></g></svg>\n'
    )


RENDERERS: dict[str, tuple[str, Callable[[Report], str]]] = {
    "text": ("txt", to_text),
    "json": ("json", Report.to_json),
    "junit": ("xml", to_junit),
    "html": ("html", to_html),
    "md": ("md", to_markdown),
    "badge": ("svg", to_badge),
}
