"""The verdict as one self-contained HTML page, for a large screen and for a phone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.detection.capsule import Capsule
from components.evaluation.report_page import HEAD, STYLE, jpeg_uri, page_template
from components.evaluation.sheets import map_tiles
from components.foundation.errors import printable
from components.foundation.limits import ImageLimits
from components.images.decode import read_square
from components.registry.gate.both import Both
from components.registry.gate.decision import Evidence, Verdict
from components.registry.gate.flips import KNOWN, Flip
from components.registry.gate.training_set import SelfScreened

TILE = 168  # pixels
SHOWN = 24  # flipped images with their maps
FARTHEST = 12  # images of a first training set that are shown
TITLES = {"promote": "promoted", "hold": "held for a person", "reject": "rejected"}
SEALS = {"promote": ("good", "✓"), "hold": ("warning", "!"), "reject": ("error", "✕")}
STANDINGS = {
    "fine": ("good", "no worse"),
    "worse": ("error", "worse"),
    "open": ("warning", "not shown"),
    "few": ("warning", "too few images"),
    "unseen": ("soft", "nothing shown"),
}
ROLES = {
    "test": "test image",
    "held-out": "held-out good image",
    "delivery": "of this delivery",
    "replay": "of the line",
}


@dataclass(frozen=True)
class Facts:
    """What the page on a comparison tells: its report, and the images behind it where both models ran."""

    report: Mapping[str, Any]
    verdict: Verdict
    evidence: Evidence
    flips: Sequence[Flip]
    both: Both | None
    capsules: tuple[Capsule, Capsule] | None
    limits: ImageLimits


def render_comparison(facts: Facts) -> str:
    """The page on a challenger and its champion: a whole HTML document that loads nothing from elsewhere."""
    return page_template(HEAD + _HEAD + _COMPARISON).render(
        **_common(facts.verdict, facts.report["category"], facts.report["challenger"]["version"]),
        report=facts.report,
        champion=facts.report["champion"]["version"],
        figures=[_bar(one) for one in facts.report["figures"]],
        rates=_rate_rows(facts.report),
        flips=[_flip(flip, facts) for flip in facts.flips[:SHOWN]],
        standings=STANDINGS,
    )  # fmt: skip


def render_first(
    category: str, number: int, verdict: Verdict, screened: SelfScreened, names: Sequence[str], images: np.ndarray
) -> str:
    """The page on a category's first version, with the images of its training set that lie farthest from the others."""
    order = np.argsort(-screened.scores, kind="stable")[:FARTHEST]
    scale = (float(np.quantile(screened.maps, 0.5)), max(float(screened.maps.max()), screened.limit))
    shown = [
        {
            "name": printable(names[screened.rows[place]]),
            "score": float(screened.scores[place]),
            "out": bool(screened.scores[place] > screened.limit),
            "tiles": [jpeg_uri(t) for t in map_tiles(np.asarray(images[screened.rows[place]]), [screened.maps[place]],
                                                 None, [scale], TILE)],
        }
        for place in order
    ]  # fmt: skip
    return page_template(HEAD + _HEAD + _FIRST).render(
        **_common(verdict, category, number), shown=shown, limit=screened.limit, count=len(screened.rows)
    )  # fmt: skip


def _common(verdict: Verdict, category: str, number: int) -> dict[str, Any]:
    tone, sign = SEALS[verdict.word]
    return {
        "style": STYLE + _STYLE, "category": category, "number": number, "verdict": verdict, "tone": tone,
        "sign": sign, "title": TITLES[verdict.word], "seals": SEALS,
    }  # fmt: skip


def _bar(figure: Mapping[str, Any]) -> dict[str, Any]:
    """A figure with where its difference, bounds and margin lie on an axis, in per cent of its width."""
    reach = max(abs(figure["low"]), abs(figure["high"]), abs(figure["estimate"]), 1.5 * figure["margin"])
    at = {name: round(50 + 48 * value / reach, 2) for name, value in
          {"low": figure["low"], "high": figure["high"], "estimate": figure["estimate"],
           "margin": -figure["margin"]}.items()}  # fmt: skip
    return {**figure, "words": printable(figure["words"]), "at": at}


def _rate_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each rate of each model, with its interval on an axis."""
    titles = {
        "false_alarms": "False alarms on good images that neither has learned",
        "misses": "Missed defects",
        "delivery": "Alarms on the good images of this delivery",
    }
    rows = []
    for key, title in titles.items():
        rates = report[key]
        if rates is None:
            continue
        stated = rates["per_1000"]
        top = max(rates["champion"]["high"], rates["challenger"]["high"], (stated or 0) / 1000, 1e-6)
        models = [
            {
                **rates[name],
                "name": name,
                "at": {end: round(100 * rates[name][end] / top, 2) for end in ("low", "high")}
                | {"rate": round(100 * rates[name]["count"] / max(1, rates[name]["images"]) / top, 2)},
            }
            for name in ("champion", "challenger")
        ]
        rows.append({"title": title, "models": models, "stated": stated,
                     "at": None if stated is None else round(stated / 10 / top, 2)})  # fmt: skip
    return rows


def _flip(flip: Flip, facts: Facts) -> dict[str, Any]:
    """A flipped image with both maps, and what changes."""
    assert facts.both is not None
    assert facts.capsules is not None
    champion, challenger = facts.capsules
    record = facts.both.images[flip.row].record
    size = challenger.detector.size
    image = read_square(record.path, size, facts.limits.at_depth(challenger.bits))
    maps = [facts.both.maps[0][flip.row], facts.both.maps[1][flip.row]]
    ranges = [champion.map_range, challenger.map_range]
    tiles = map_tiles(image, maps, facts.both.masks[1][flip.row], ranges, TILE)
    good = "good" if flip.role in KNOWN else "said to be good"
    kind = {"good": good, "": "not known"}.get(flip.kind, f"defect: {flip.kind}")
    tone, said = {True: ("error", "wrong"), False: ("good", "right"), None: ("warning", "not known")}[flip.wrong]
    return {
        "name": printable(flip.name), "role": ROLES[flip.role], "kind": printable(kind), "words": flip.words,
        "champion": flip.champion, "challenger": flip.challenger, "tone": tone, "said": said,
        "tiles": [jpeg_uri(tile) for tile in tiles],
    }  # fmt: skip


_STYLE = """
.why { list-style: none; margin: 0; padding: 6px 20px; } .why li { padding: 9px 0; border-top: 1px solid var(--line);
  display: flex; gap: 12px; align-items: baseline; overflow-wrap: anywhere; } .why li:first-child { border-top: 0; }
.why .tag { min-width: 74px; text-align: center; flex: none; } .tag.soft { background: var(--paper); }
.row { display: grid; grid-template-columns: minmax(130px, 1.3fr) 70px 70px minmax(160px, 2fr) 120px; gap: 4px 14px;
  align-items: center; padding: 10px 20px; border-top: 1px solid var(--line); font-variant-numeric: tabular-nums; }
.row:first-child { border-top: 0; } .row.heads { color: var(--soft); font-size: 13px; } .row .tag { justify-self: end; }
.row small { display: block; color: var(--soft); font-size: 12.5px; } .row > * { min-width: 0; }
.row > * { overflow-wrap: anywhere; }
.axis-bar { position: relative; height: 22px; } .axis-bar i { position: absolute; display: block; }
.axis-bar .zero { left: 50%; top: 0; bottom: 0; width: 1px; background: var(--soft); }
.axis-bar .span { top: 9px; height: 4px; border-radius: 2px; background: var(--bar); opacity: .55; }
.axis-bar .dot { top: 5px; width: 12px; height: 12px; margin-left: -6px; border-radius: 50%; background: var(--bar); }
.axis-bar .limit { top: 0; bottom: 0; width: 0; border-left: 2px dashed var(--bad); }
.axis-bar.error .span, .axis-bar.error .dot { background: var(--bad); }
.rate { display: grid; grid-template-columns: 96px 1fr 190px; gap: 4px 14px; align-items: center; padding: 4px 0; }
.rates .card { padding: 14px 20px; margin-top: 10px; } .rates b { display: block; margin-bottom: 4px; }
.flips { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 14px; margin-top: 10px; }
.flips figure { padding: 12px; } .tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px; }
.tiles.two { grid-template-columns: repeat(2, 1fr); }
.tiles img { width: 100%; display: block; border-radius: 6px; } .tiles span { font-size: 12px; color: var(--soft);
  display: block; text-align: center; font-variant-numeric: tabular-nums; }
.flips figcaption { display: flex; gap: 8px; justify-content: space-between; align-items: baseline; }
.facts { margin: 0; padding: 8px 20px; display: grid; grid-template-columns: max-content 1fr 1fr; gap: 6px 18px; }
.facts > * { overflow-wrap: anywhere; min-width: 0; } code { overflow-wrap: anywhere; }
@media (max-width: 640px) { main { padding: 16px 12px 40px; } header.card { padding: 16px; gap: 12px; } h1 {
  font-size: 21px; } .row { grid-template-columns: 1fr 1fr; padding: 12px 14px; } .row.heads { display: none; }
  .row > :first-child { grid-column: 1; } .row > .tag { grid-column: 2; grid-row: 1; } .row > .axis-bar {
  grid-column: 1 / -1; } .row [data-head]::before { content: attr(data-head) " "; color: var(--soft); }
  .rate { grid-template-columns: 1fr 1fr; } .rate > .axis-bar { grid-column: 1 / -1; grid-row: 2; }
  .rate > :last-child { text-align: right; } .why { padding: 4px 14px; } .facts { grid-template-columns: 1fr 1fr;
  padding: 8px 14px; } .facts .key { grid-column: 1 / -1; } }
"""

_HEAD = """<!DOCTYPE html>
<html lang="en">
{{ head(category ~ " version " ~ number ~ ": " ~ title, style) }}
<body>
<main>
<header class="card">
<div class="seal {{ tone }}">{{ sign }}</div>
<div>
<h1>{{ category }} version {{ number }}: {{ title }}</h1>
<p class="{{ tone }}"><b>{{ verdict.summary[0] | upper }}{{ verdict.summary[1:] }}.</b></p>
</div>
</header>
{% if verdict.word == "hold" %}
<p class="soft" style="margin-top: 10px">A person decides: <code>flawline gate {{ category }} --promote</code> or
<code>flawline gate {{ category }} --reject</code></p>
{% endif %}

{% macro why() %}
<h2>Why</h2>
<ul class="card why">
{% for reason in verdict.reasons %}
<li><span class="tag {{ seals[reason.word][0] if reason.word else "soft" }}">{{ reason.word or "noted" }}</span>
<span>{{ reason.words[0] | upper }}{{ reason.words[1:] }}</span></li>
{% endfor %}
</ul>
{% endmacro %}
"""

_COMPARISON = """
<div class="figures">
<div class="card"><b>{{ number }}</b><span class="soft">challenger; champion is version {{ champion }}</span></div>
<div class="card"><b>{{ report.images.test + report.images["held-out"] }}</b>
<span class="soft">images that neither has learned</span></div>
<div class="card"><b>{{ report.images.delivery }}</b><span class="soft">images of this delivery</span></div>
<div class="card"><b>{{ report.flipped }}</b><span class="soft">flipped verdicts</span></div>
</div>

{{ why() }}

{% if figures %}
<h2>Figures {{ "of the exam's synthetic defects" if report.measured_on == "exam" else "on the test images" }}</h2>
<p class="soft">Challenger minus champion on the same images, with bounds of {{ "%g" % (100 * report.confidence) }} %
confidence on either side; the dashed line is the margin.</p>
<div class="card" style="margin-top: 10px">
<div class="row heads"><span>figure</span><span>champion</span><span>challenger</span><span>difference</span>
<span></span></div>
{% for one in figures %}
<div class="row">
<span><b>{{ one.words }}</b><small>{{ one.good }} good, {{ one.defects }} defective
{%- if one.tellable and not one.is_kind %}; tell {{ "%.0f" % (100 * one.tellable) }} points{% endif %}</small></span>
<span data-head="champion">{{ "%.3f" % one.champion }}</span>
<span data-head="challenger">{{ "%.3f" % one.challenger }}</span>
<div class="axis-bar {{ "error" if one.standing == "worse" else "" }}" title="{{ "%+.3f" % one.estimate }}">
<i class="zero"></i><i class="limit" style="left: {{ one.at.margin }}%"></i>
<i class="span" style="left: {{ one.at.low }}%; width: {{ "%.2f" % (one.at.high - one.at.low) }}%"></i>
<i class="dot" style="left: {{ one.at.estimate }}%"></i></div>
<span class="tag {{ standings[one.standing][0] }}">{{ standings[one.standing][1] }}</span>
</div>
{% endfor %}
</div>
{% endif %}

{% if rates %}
<h2>At the thresholds</h2>
<div class="rates">
{% for row in rates %}
<div class="card"><b>{{ row.title }}</b>
{% for model in row.models %}
<div class="rate"><span>{{ model.name }}</span>
<div class="axis-bar">{% if row.at is not none %}<i class="limit" style="left: {{ row.at }}%"></i>{% endif %}
<i class="span" style="left: {{ model.at.low }}%; width: {{ "%.2f" % (model.at.high - model.at.low) }}%"></i>
<i class="dot" style="left: {{ model.at.rate }}%"></i></div>
<span>{{ model.count }} of {{ model.images }}{% if model.side is defined %}: {{ model.side }}{% endif %}</span></div>
{% endfor %}
{% if row.stated is not none %}
<span class="soft">The dashed line is what is borne: {{ "%g" % row.stated }} in 1000. Within and beyond are said where
{{ "%g" % (100 * report.confidence) }} % confidence allows it.</span>
{% endif %}
</div>
{% endfor %}
</div>
{% endif %}

{% if flips %}
<h2>Flipped verdicts, the worst first</h2>
<p class="soft">{{ report.flipped }} of {{ report.images.values() | sum }} images; the numbers say how far the score
lies above the threshold.</p>
<div class="flips">
{% for flip in flips %}
<figure class="card">
<div class="tiles">
<div><img src="{{ flip.tiles[0] }}" alt="{{ flip.name }}"><span>{{ flip.kind }}</span></div>
<div><img src="{{ flip.tiles[1] }}" alt="the champion's map"><span>champion {{ "%+.2f" % flip.champion }}</span></div>
<div><img src="{{ flip.tiles[2] }}" alt="the challenger's map"><span>challenger {{ "%+.2f" % flip.challenger }}</span>
</div></div>
<figcaption><span>{{ flip.name }}, {{ flip.role }}: {{ flip.words }}</span>
<span class="tag {{ flip.tone }}">{{ flip.said }}</span></figcaption>
</figure>
{% endfor %}
</div>
{% if report.flipped > flips | length %}
<p class="soft" style="margin-top: 10px">{{ report.flipped - flips | length }} more are listed in gate.json.</p>
{% endif %}
{% endif %}

<h2>The two versions</h2>
<div class="card facts">
<span class="key"></span><b>champion, version {{ champion }}</b><b>challenger, version {{ number }}</b>
{% for key, words in (("method", "method"), ("data", "data version"), ("digest", "capsule")) %}
<span class="key soft">{{ words }}</span><span>{{ report.champion[key] or "not known" }}</span>
<span>{{ report.challenger[key] or "not known" }}</span>
{% endfor %}
<span class="key soft">in a fresh process</span>
{% for name in ("champion", "challenger") %}
{% set cost = report.costs[name] %}
<span>{% if cost.error %}does not run: {{ cost.error }}{% else %}{{ "%.0f" % cost.milliseconds }} ms an image,
{{ "%.0f" % cost.megabytes }} MB{% endif %}</span>
{% endfor %}
</div>
<footer class="soft">{{ report.resamples }} paired bootstrap samples, seed {{ report.seed }}.</footer>
</main>
</body>
</html>
"""

_FIRST = """
{{ why() }}

<h2>Its training set, screened by itself</h2>
<p class="soft">No champion was there to look at these {{ count }} good images before they were learned. Each was scored
by all the others; shown are those that lie farthest away. Beyond {{ "%.3g" % limit }} a person has to look.</p>
<div class="flips">
{% for one in shown %}
<figure class="card">
<div class="tiles two">
<div><img src="{{ one.tiles[0] }}" alt="{{ one.name }}"></div>
<div><img src="{{ one.tiles[1] }}" alt="how far each place is from the other images"></div>
</div>
<figcaption><span>{{ one.name }}, {{ "%.3g" % one.score }}</span>
<span class="tag {{ "error" if one.out else "soft" }}">{{ "stands out" if one.out else "as others" }}</span>
</figcaption>
</figure>
{% endfor %}
</div>
</main>
</body>
</html>
"""
