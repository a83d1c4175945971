"""What became of a delivery of arriving images as one small HTML page that looks right offline."""

from collections.abc import Mapping, Sequence
from typing import Any

from components.arrivals.delivery import Delivery, Item
from components.arrivals.review import review_name
from components.arrivals.triage import Verdict
from components.evaluation.report_page import HEAD, REST, STYLE, page_template, thumbnail
from components.foundation.limits import ImageLimits

SHOWN = 8  # images with a thumbnail per reason
LISTED = 100  # others that are named per reason
SAMPLES = 8  # accepted images on a page
MAP_SIDE = 420  # pixels on the longer side of an image with its anomaly map


def render_arrivals(
    delivery: Delivery, verdicts: Sequence[Verdict], summary: Mapping[str, Any], limits: ImageLimits
) -> str:
    """The page on a triaged delivery whose files are still in its folder: a whole HTML document.

    summary: of `flows.arrivals.steps.acknowledge`, for the counts and the drift. limits: to read the images that are
    shown. What was not admitted is named and never opened.
    """
    items = {item.number: item for item in delivery.items()}
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.outcome, verdict.code), []).append(verdict)
    return page_template(REST + HEAD + _PAGE).render(
        summary=summary,
        style=STYLE,
        shown=SHOWN,
        samples=[_shown(delivery, items, verdict, limits) for verdict in groups.pop(("accepted", ""), [])[:SAMPLES]],
        groups=[
            {
                "outcome": outcome,
                "code": code,
                "count": len(group),
                "images": [_shown(delivery, items, verdict, limits) for verdict in group[:SHOWN]],
                "others": [_said(items, verdict) for verdict in group[SHOWN : SHOWN + LISTED]],
            }
            for (outcome, code), group in sorted(groups.items())
        ],
    )


def _shown(delivery: Delivery, items: Mapping[int, Item], verdict: Verdict, limits: ImageLimits) -> dict[str, Any]:
    """What the page says of one image: a small picture, the one with its anomaly map, score, p-value and command."""
    item = items[verdict.number]
    anomaly_map = delivery.picture(item)
    return {
        "words": _said(items, verdict),
        "picture": thumbnail(delivery.raw(item), limits) if verdict.facts else None,
        "map": thumbnail(anomaly_map, limits, MAP_SIDE) if anomaly_map.is_file() else None,
        "score": verdict.score,
        "p_value": verdict.p_value,
        "name": review_name(delivery.place("held", item)) if verdict.outcome == "held" else None,
    }


def _said(items: Mapping[int, Item], verdict: Verdict) -> str:
    return f"{items[verdict.number].shown} {verdict.words}".strip()


_PAGE = """<!DOCTYPE html>
<html lang="en">
{% set state = "error" if not summary.accepted else "warning" if groups or summary.drift else "good" %}
{% macro pictures(images) %}
<div class="faults">
{% for image in images %}
<figure>
<div class="pair">
{% if image.map %}
<img class="map" src="{{ image.map }}" alt="{{ image.words }}, with its anomaly map">
{% elif image.picture %}
<img src="{{ image.picture }}" alt="{{ image.words }}">
{% else %}
<span class="none">not opened</span>
{% endif %}
</div>
<figcaption>{{ image.words }}
{%- if image.score is not none %} <span class="soft">score {{ "%.3g" % image.score }},
p = {{ "%.3g" % image.p_value }}</span>{% endif %}
{%- if image.name %}<br><code>flawline review accept {{ image.name }}</code>{% endif %}
</figcaption>
</figure>
{% endfor %}
</div>
{% endmacro %}
{{ head("Arrived for " ~ summary.category, style) }}
<body>
<main>
<header class="card">
<div class="seal {{ state }}">{{ {"good": "✓", "warning": "!", "error": "✕"}[state] }}</div>
<div>
<h1>Arrived for {{ summary.category }}</h1>
<p class="{{ state }}"><b>{{ summary.accepted }} of {{ summary.arrived }} accepted
{%- if summary.get("message") %}: {{ summary.message }}{% endif %}</b></p>
</div>
</header>

<div class="figures">
{% for name in ("arrived", "accepted", "held", "quarantined") %}
<div class="card"><b>{{ summary[name] }}</b><span class="soft">{{ name }}</span></div>
{% endfor %}
</div>

{% if summary.drift %}
<h2>The delivery differs from the training images</h2>
<div class="card"><table>
{% for one in summary.drift %}
<tr><td>{{ one.measure | replace("_", " ") }}</td>
<td class="soft">median {{ "%.4g" % one.median_before }} → {{ "%.4g" % one.median_now }},
corrected p = {{ "%.2g" % one.p_value }}</td>
<td><span class="tag warning">drift</span></td></tr>
{% endfor %}
</table></div>
{% endif %}

{% if groups %}
<h2>What was not accepted</h2>
{% for group in groups %}
{% set tone = "warning" if group.outcome == "held" else "error" %}
<section class="card broken {{ tone }}">
<h3>{{ group.count }} {{ group.code }} <span class="tag {{ tone }}">{{ group.outcome }}</span></h3>
{{ pictures(group.images) }}
{% if group.outcome == "held" %}
<p class="soft">A person decides: <code>flawline review accept NAME…</code> takes images for good,
<code>flawline review refuse NAME…</code> puts them into quarantine.</p>
{% endif %}
{{ rest(group.others, group.images | length, group.count) }}
</section>
{% endfor %}
{% endif %}

{% if samples %}
<h2>Some of the accepted images</h2>
<div class="strip">
{% for image in samples %}
<img src="{{ image.picture }}" alt="{{ image.words }}" title="{{ image.words }}">
{% endfor %}
</div>
{% endif %}

<footer class="soft">Delivery {{ summary.batch }} from {{ summary.source }}, {{ summary.time }}
{%- if not summary.screened %}; no champion was there yet to look for defects{% endif %}
{%- if summary.commit %}; version {{ summary.commit }}{% endif %}
</footer>
</main>
</body>
</html>
"""
