"""One page to look at, drawn on the server: pipelines, versions, times, outcomes and features as inline SVG.

Everything that comes from outside is escaped where it is put in; the page has no script.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from turnout.monitoring.domain.drift import FeatureReport
from turnout.monitoring.domain.report import Confusion, PipelineLine, PipelineReport, Quality, Scatter, VersionReport

# Pipelines drawn whole; the others are in the table on top.
PIPELINES = 20
# Features drawn, the most moved first.
FEATURES = 12

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2733;--dim:#5c6b7a;--line:#d5dce3;--back:#fff;--live:#0b6bcb;
--trained:#9aa7b4;--good:#187a3c;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9ee;--dim:#9aa7b4;--line:#33404d;--back:#12181f;--live:#6cb2ff;
--trained:#66747f;--good:#5fd08a;--bad:#ff8a80}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--back);margin:2rem auto;max-width:70rem;
padding:0 1rem}
h1{font-size:1.3rem}h2{font-size:1.15rem;margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1rem}
h3{font-size:1rem;margin-bottom:.3rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:right;padding:.25rem .6rem;border-bottom:1px solid var(--line)}
th:first-child,td:first-child,.text{text-align:left}th{color:var(--dim);font-weight:500}
.scroll{overflow-x:auto}.plots{display:flex;flex-wrap:wrap;gap:1.2rem}
figure{margin:0}figcaption{color:var(--dim);font-size:.85rem;max-width:16rem}
.dim{color:var(--dim)}.bad{color:var(--bad)}.good{color:var(--good)}
svg text{fill:var(--dim);font-size:10px}
"""


def render(lines: Sequence[PipelineLine], reports: Sequence[PipelineReport]) -> str:
    """The page as HTML."""
    body = "".join(_pipeline(found) for found in reports)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>Turnout</title>'
        f"<style>{_STYLE}</style></head><body><main><h1>Turnout: pipelines</h1>{_list(lines)}{body}</main></body>"
        "</html>"
    )


def _list(lines: Sequence[PipelineLine]) -> str:
    if not lines:
        return "<p>No pipeline is declared yet. Try <code>turnout init FILE</code>.</p>"
    rows = (
        [
            f'<a href="#{escape(line.pipeline)}">{escape(line.pipeline)}</a>',
            _stage(line),
            _champion(line),
            escape(line.previous or "–"),
            _number(line.served),
            escape(", ".join(f"{who} {count:,}" for who, count in sorted(line.answers.items())) or "–"),
        ]
        for line in lines
    )
    return _table(["pipeline", "stands at", "answers", "behind it", "answers given", "by"], rows)


def _stage(line: PipelineLine) -> str:
    if line.stage is None:
        return "–"
    colour = "bad" if line.stage.failed else "text"
    return f'<span class="{colour}" title="{escape(line.stage.detail)}">{escape(line.stage.name)}</span>'


def _champion(line: PipelineLine) -> str:
    return "–" if line.champion is None else escape(line.champion) + (" (pinned)" if line.pinned else "")


def _pipeline(found: PipelineReport) -> str:
    leading = next((v for v in found.versions if v.role == "champion"), None)
    name = escape(found.pipeline)
    return (
        f'<section><h2 id="{name}">{name}</h2><p class="dim">{escape(found.why)}, says {escape(found.by)}</p>'
        f"{_versions(found.versions)}{_outcomes(found.versions)}{_features(leading)}</section>"
    )


def _versions(versions: Sequence[VersionReport]) -> str:
    head = [
        "version",
        "role",
        "deployed",
        "served",
        "p50 ms",
        "p99 ms",
        "max ms",
        "late",
        "errors",
        "fallbacks",
        "quality",
    ]
    rows = (
        [
            f'{escape(v.version)} <span class="dim">{escape(v.algorithm)}</span>',
            escape(v.role or "–") + ("" if v.fit else ' <span class="bad">unfit</span>'),
            v.deployed.strftime("%Y-%m-%d %H:%M:%S") if v.deployed else "–",
            _number(v.served),
            _number(v.milliseconds.p50),
            _number(v.milliseconds.p99),
            _number(v.milliseconds.maximum),
            _alarming(v.late),
            _alarming(v.errors),
            _alarming(sum(v.fallbacks.values())),
            _promise(v.quality),
        ]
        for v in versions
    )
    return f"<h3>Versions</h3>{_table(head, rows)}"


def _promise(quality: Quality) -> str:
    if quality.metric is None or quality.promised is None:
        return "–"
    promised = f"{escape(quality.metric)} {quality.promised:.3g} promised"
    if quality.live is None:
        return promised
    return f"{quality.live:.3g} of {quality.outcomes:,} <span class='dim'>({promised})</span>"


def _outcomes(versions: Sequence[VersionReport]) -> str:
    plots = [_actual(v) for v in versions if v.quality.confusion or v.quality.scatter]
    return f'<h3>Predicted against actual</h3><div class="plots">{"".join(plots)}</div>' if plots else ""


def _actual(version: VersionReport) -> str:
    quality = version.quality
    drawn = _matrix(quality.confusion) if quality.confusion else ""
    if quality.scatter:
        drawn = _points(quality.scatter)
    caption = f"version {escape(version.version)}: {_promise(quality)}"
    return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>"


def _matrix(found: Confusion) -> str:
    size = 34 if len(found.actual) <= 6 else 20
    top = 70
    side = top + size * len(found.actual)
    greatest = max((c for row in found.counts for c in row), default=0) or 1
    cells: list[str] = []
    for i, row in enumerate(found.counts):
        y = top + i * size
        cells.append(f'<text x="{top - 6}" y="{y + size / 2 + 3}" text-anchor="end">{_short(found.actual[i])}</text>')
        x_label = f'<text transform="translate({top + i * size + size / 2 + 3},{top - 6}) rotate(-60)">'
        cells.append(f"{x_label}{_short(found.predicted[i])}</text>")
        for j, count in enumerate(row):
            colour = "var(--good)" if i == j else "var(--bad)"
            x = top + j * size
            label = f"{_short(found.actual[i])} predicted as {_short(found.predicted[j])}: {count}"
            cells.append(
                f'<rect x="{x}" y="{y}" width="{size - 1}" height="{size - 1}" fill="{colour}"'
                f' fill-opacity="{0.06 + 0.8 * count / greatest:.3f}"><title>{label}</title></rect>'
            )
            if size > 24:
                cells.append(f'<text x="{x + size / 2}" y="{y + size / 2 + 3}" text-anchor="middle">{count}</text>')
    title = "rows: what came true; columns: what was predicted"
    return _svg(side + 30, side + 4, "".join(cells), title)


def _points(found: Scatter) -> str:
    values = [v for point in found.points for v in point]
    low, high = min(values), max(values)
    spread = (high - low) or 1.0

    def at(value: float) -> float:
        return 8 + 204 * (value - low) / spread

    dots = "".join(
        f'<circle cx="{at(actual):.1f}" cy="{220 - at(predicted):.1f}" r="2.5" fill="var(--live)" fill-opacity=".55"/>'
        for predicted, actual in found.points
    )
    line = '<line x1="8" y1="212" x2="212" y2="8" stroke="var(--trained)" stroke-dasharray="4 3"/>'
    return _svg(220, 220, line + dots, f"across: actual; up: predicted; mean absolute error {found.mae:.4g}")


def _features(version: VersionReport | None) -> str:
    if version is None or not version.features:
        return ""
    drawn = "".join(_bars(feature) for feature in version.features[:FEATURES])
    key = (
        '<span style="color:var(--trained)">■</span> training, <span style="color:var(--live)">■</span> now;'
        " the most moved first"
    )
    head = f"<h3>What is asked of version {escape(version.version)}</h3>"
    return f'{head}<p class="dim">{key}</p><div class="plots">{drawn}</div>'


def _bars(feature: FeatureReport) -> str:
    shown = list(zip(feature.labels, feature.training, feature.live, strict=False))[:24]
    greatest = max((max(t, n) for _, t, n in shown), default=0.0) or 1.0
    width = 240 / max(len(shown), 1)
    bars: list[str] = []
    for index, (label, trained, now) in enumerate(shown):
        title = f"<title>{_short(label)}: training {trained:.1%}, now {now:.1%}</title>"
        for part, (share, colour) in enumerate(((trained, "--trained"), (now, "--live"))):
            height = 70 * share / greatest
            bars.append(
                f'<rect x="{index * width + part * width * 0.45:.1f}" y="{74 - height:.1f}" width="{width * 0.42:.1f}"'
                f' height="{height:.1f}" fill="var({colour})">{title}</rect>'
            )
    moved = "too few to compare" if feature.psi is None else f"PSI {feature.psi:.3f} (by chance {feature.noise:.3f})"
    missing = f", missing {feature.missing_live:.1%} (training {feature.missing_training:.1%})"
    unseen = f", never seen {feature.unseen:.1%}" if feature.unseen else ""
    caption = f"<b>{escape(feature.name)}</b>: {moved}{missing}{unseen}"
    return f"<figure>{_svg(240, 76, ''.join(bars), feature.name)}<figcaption>{caption}</figcaption></figure>"


def _svg(width: float, height: float, inside: str, title: str) -> str:
    return (
        f'<svg width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" role="img">'
        f"<title>{escape(title)}</title>{inside}</svg>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """`rows` are HTML already."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _alarming(count: int) -> str:
    return f'<span class="bad">{count:,}</span>' if count else "0"


def _short(text: str) -> str:
    return escape(text if len(text) <= 12 else f"{text[:11]}…")
