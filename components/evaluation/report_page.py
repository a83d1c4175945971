"""The data check as one small HTML page that looks right offline: styles, figures and thumbnails are inside it."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined, Template
from PIL import Image

from components.foundation.errors import UserError, printable
from components.foundation.limits import ImageLimits
from components.images.dataset import Category
from components.images.decode import read_image
from components.images.table import good_values

THUMBNAIL = 112  # pixels on the longer side
SHOWN = 8  # offending images with a thumbnail per rule
SAMPLES = 8  # good training images on a page
BINS = 32
PLOT = (300.0, 64.0)  # width and height of a histogram, in its own units


def render_page(report: dict[str, Any], table: pd.DataFrame, category: Category, limits: ImageLimits) -> str:
    """The page for a report of `components.stages.validate`: a whole HTML document, the same bytes for the same input.

    table: the image table that the report was made from. category, limits: to read the images that are shown.
    Names are escaped; nothing is loaded from elsewhere, and the page's own policy forbids it.
    """
    paths = {printable(path.relative_to(category.root).as_posix()): path for path in _files(category)}
    pictures = {name: thumbnail(paths[name], limits) for name in _names_to_show(report, table) if name in paths}
    plots = [_plot(name, expected, table) for name, expected in report["ranges"].items() if _varies(table, name)]
    return page_template(REST + HEAD + _PAGE).render(
        report=report,
        pictures=pictures,
        plots=plots,
        samples=_samples(table),
        shown=SHOWN,
        style=STYLE,
        width=PLOT[0],
        height=PLOT[1],
    )


def page_template(text: str) -> Template:
    """The template of a page: what it shows is escaped, and a name that it is not given is an error."""
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        text
    )


def thumbnail(path: Path, limits: ImageLimits, side: int = THUMBNAIL) -> str | None:
    """A small JPEG of an image, at most `side` pixels a side, as a data URI; None where it cannot be decoded."""
    try:
        picture = Image.fromarray(read_image(path, limits))
    except UserError:
        return None
    picture.thumbnail((side, side))
    return jpeg_uri(picture)


def jpeg_uri(picture: Image.Image) -> str:
    """A picture as a JPEG in a data URI."""
    data = BytesIO()
    picture.save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _files(category: Category) -> list[Path]:
    return [path for record in category.records for path in (record.path, *record.masks)]


def _names_to_show(report: dict[str, Any], table: pd.DataFrame) -> list[str]:
    broken = [check for check in report["checks"] if not check["success"]]
    offending = [offence for check in broken for offence in check["images"][:SHOWN]]
    names = [name for offence in offending for name in (offence["name"], offence["other"]) if name]
    return list(dict.fromkeys([*_samples(table), *names]))


def _samples(table: pd.DataFrame) -> list[str]:
    """Names of a few good training images that can be decoded, spread evenly over them."""
    good = table.loc[(table["split"] == "train") & table["decodes"], "name"].tolist()
    places = np.linspace(0, len(good) - 1, min(SAMPLES, len(good))).round().astype(int)
    return [good[place] for place in places]


def _varies(table: pd.DataFrame, measure: str) -> bool:
    """Whether there is anything to plot: the colour shares of grey images, for one, are all the same."""
    return bool(np.ptp(good_values(table, measure, "train")) > 1e-9)


def _plot(measure: str, expected: dict[str, float], table: pd.DataFrame) -> dict[str, Any]:
    """Two histograms (good training and good test images) over one axis, with the expected range as a band."""
    train, test = (good_values(table, measure, split) for split in ("train", "test"))
    values = np.concatenate([train, test])
    axis = (min(expected["low"], values.min()), max(expected["high"], values.max()))
    left, right = ((expected[end] - axis[0]) / (axis[1] - axis[0]) * PLOT[0] for end in ("low", "high"))
    return {
        "measure": measure.replace("_", " "),
        "expected": expected,
        "band": {"left": round(left, 1), "width": round(right - left, 1)},
        "train": _bars(train, axis, inset=0),
        "test": _bars(test, axis, inset=2.6),
    }


def _bars(values: np.ndarray, axis: tuple[float, float], inset: float) -> list[tuple[float, float, float]]:
    """(left, top, height) of each bar that is not empty, in the plot's units; the highest is nearly full."""
    counts, _ = np.histogram(values, bins=BINS, range=axis)
    width, height = PLOT
    tall = np.round(counts / max(counts.max(), 1) * (height - 4), 1).tolist()
    return [(round(i * width / BINS + inset, 2), round(height - h, 1), h) for i, h in enumerate(tall) if h]


STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #1c2430; --soft: #647084; --line: #e3e7ed;
  --good: #12805c; --warn: #a86400; --bad: #c22f3d; --good-bg: #e4f5ee; --warn-bg: #fdf1dc; --bad-bg: #fde8ea;
  --bar: #4b7bec; --bar2: #e08a1e; --band: #4b7bec1a; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --card: #1a2029; --ink: #e4e9f0; --soft: #96a2b4;
  --line: #2b3441; --good: #4fd0a0; --warn: #f0b458; --bad: #ff7f8a; --good-bg: #14342a; --warn-bg: #3a2c12;
  --bad-bg: #40191e; --bar: #6f9bff; --bar2: #f0a94a; --band: #6f9bff22; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 32px 20px 56px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 16px; margin: 32px 0 10px; }
p { margin: 0; }
.soft { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
header.card { display: flex; gap: 18px; align-items: center; padding: 22px 24px; }
.seal { flex: none; width: 52px; height: 52px; border-radius: 50%; display: grid; place-items: center; font-size: 26px;
  font-weight: 700; }
.good { color: var(--good); } .warning { color: var(--warn); } .error { color: var(--bad); }
.seal.good, .tag.good { background: var(--good-bg); } .seal.warning, .tag.warning { background: var(--warn-bg); }
.seal.error, .tag.error { background: var(--bad-bg); }
.tag { display: inline-block; border-radius: 99px; padding: 1px 10px; font-size: 12.5px; font-weight: 600;
  white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 12px; }
.figures .card { padding: 12px 16px; }
.figures b { display: block; font-size: 21px; font-weight: 650; font-variant-numeric: tabular-nums; }
.figures span { font-size: 13px; overflow-wrap: anywhere; }
.broken { padding: 16px 20px 18px; margin-top: 12px; border-left: 4px solid currentColor; }
.broken > * { color: var(--ink); } .broken > .soft { color: var(--soft); }
.broken h3 { font-size: 15.5px; margin: 0; display: flex; gap: 10px; justify-content: space-between; }
.faults { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 14px; margin-top: 14px; }
figure { margin: 0; min-width: 0; }
.pair { display: flex; gap: 6px; }
.pair > * { width: 112px; height: 112px; border-radius: 8px; object-fit: contain; background: var(--paper);
  border: 1px solid var(--line); }
.none { display: grid; place-items: center; text-align: center; font-size: 12px; color: var(--soft); padding: 8px; }
.pair .map { width: auto; height: auto; max-width: 100%; }
figcaption { font-size: 13px; margin-top: 6px; overflow-wrap: anywhere; }
details { margin-top: 12px; font-size: 13px; } td details { margin-top: 2px; }
summary { cursor: pointer; color: var(--soft); }
details li { overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; font-size: 14px; }
td { padding: 8px 16px; border-top: 1px solid var(--line); } tr:first-child td { border-top: 0; }
td:last-child, td:nth-child(2) { text-align: right; white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 12px; margin-top: 10px; }
.plots .card { padding: 14px 16px 12px; } .plots b::first-letter { text-transform: uppercase; }
.plots b { display: inline-block; }
.plots svg { width: 100%; height: 72px; display: block; margin-top: 8px; }
.axis { font-size: 12px; margin-top: 4px; font-variant-numeric: tabular-nums; }
.band { fill: var(--band); } .train { fill: var(--bar); } .test { fill: var(--bar2); }
.key.train { background: var(--bar); } .key.test { background: var(--bar2); }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin: 0 5px 0 12px; }
.strip { display: grid; grid-template-columns: repeat(8, 1fr); gap: 8px; }
.strip img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 8px; display: block; }
footer { margin-top: 32px; font-size: 12.5px; overflow-wrap: anywhere; }
@media (max-width: 560px) { .strip { grid-template-columns: repeat(4, 1fr); } td { padding: 8px 10px; } }
"""

# What a list goes on with below the first few that are shown, of `count` in all; of these perhaps not all have words.
REST = """{% macro rest(words, shown, count) %}
{% if count > shown %}
<details><summary>{{ count - shown }} more</summary>
<ul>
{% for one in words %}
<li>{{ one }}</li>
{% endfor %}
{% if count > shown + words | length %}
<li>and {{ count - shown - words | length }} that are not listed</li>
{% endif %}
</ul>
</details>
{% endif %}
{% endmacro %}
"""

# The head of a page that loads nothing from anywhere.
HEAD = """{% macro head(title, style) %}
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>{% endmacro %}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
{% macro many(things, one, several) %}{{ things | length }} {{ one if things | length == 1 else several }}{% endmacro %}
{% macro picture(name) %}
{% if pictures.get(name) %}
<img src="{{ pictures[name] }}" alt="{{ name }}" title="{{ name }}">
{% else %}
<span class="none">no picture:<br>{{ "cannot be decoded" if name in pictures else "is not used" }}</span>
{% endif %}
{% endmacro %}
{% set broken = report.checks | rejectattr("success") | sort(attribute="severity") | list %}
{% set kept = report.checks | selectattr("success") | list %}
{% set state = "error" if not report.passed else "warning" if report.warnings else "good" %}
{{ head("Data check of " ~ report.category, style) }}
<body>
<main>
<header class="card">
<div class="seal {{ state }}">{{ {"good": "✓", "warning": "!", "error": "✕"}[state] }}</div>
<div>
<h1>Data check of {{ report.category }}</h1>
<p class="{{ state }}"><b>
{%- if state == "error" -%}
Not fit to learn from: {{ many(report.errors, "rule is", "rules are") }} broken
{%- elif state == "warning" -%}
Fit to learn from, with {{ many(report.warnings, "warning", "warnings") }}
{%- else -%}
Fit to learn from: all {{ report.checks | length }} rules are kept
{%- endif -%}
</b></p>
</div>
</header>

<div class="figures">
<div class="card"><b>{{ report.images }}</b><span class="soft">images in all</span></div>
{% for place, count in report.counts.items() %}
{% set split, kind = place.split("/") %}
<div class="card"><b>{{ count }}</b><span class="soft">{{ split }}/<wbr>{{ kind }}</span></div>
{% endfor %}
</div>

{% if broken %}
<h2>What needs a look</h2>
{% for check in broken %}
<section class="card broken {{ check.severity }}">
<h3>{{ check.demand }} <span class="tag {{ check.severity }}">{{ check.severity }}</span></h3>
<p class="soft">
{%- if check.failing -%}
{{ check.failing }} of {{ check.checked }} images {{ "breaks" if check.failing == 1 else "break" }} this rule
{%- else -%}
{{ check.problem[0] | upper }}{{ check.problem[1:] }}
{%- endif -%}
. What to do: {{ check.remedy }}{{ "" if check.remedy.endswith("?") else "." }}</p>
{% if check.images %}
<div class="faults">
{% for fault in check.images[:shown] %}
<figure>
<div class="pair">{{ picture(fault.name) }}{% if fault.other %}{{ picture(fault.other) }}{% endif %}</div>
<figcaption>{{ fault.problem }}</figcaption>
</figure>
{% endfor %}
</div>
{% endif %}
{{ rest(check.images[shown:] | map(attribute="problem") | list, shown, check.failing) }}
</section>
{% endfor %}
{% endif %}

{% if plots %}
<h2>How the good images look</h2>
<p class="soft">The shaded band is the range learned from the training images.
<span class="key train"></span>training<span class="key test"></span>test</p>
<div class="plots">
{% for p in plots %}
<div class="card"><b>{{ p.measure }}</b> <span class="soft">median {{ "%.4g" % p.expected.median }}</span>
<svg viewBox="0 0 {{ width }} {{ height }}" preserveAspectRatio="none" role="img" aria-label="{{ p.measure }}">
<rect x="{{ p.band.left }}" y="0" width="{{ p.band.width }}" height="{{ height }}" class="band"/>
<g class="train">
{% for x, y, tall in p.train %}
<rect x="{{ x }}" y="{{ y }}" width="8.4" height="{{ tall }}"/>
{% endfor %}
</g>
<g class="test">
{% for x, y, tall in p.test %}
<rect x="{{ x }}" y="{{ y }}" width="3.2" height="{{ tall }}"/>
{% endfor %}
</g>
</svg>
<p class="axis soft">expected {{ "%.4g" % p.expected.low }} … {{ "%.4g" % p.expected.high }}</p>
</div>
{% endfor %}
</div>
{% endif %}

{% if samples %}
<h2>Some of the training images</h2>
<div class="strip">{% for name in samples %}{{ picture(name) }}{% endfor %}</div>
{% endif %}

{% for suite, rules in kept | groupby("suite") %}
<h2>Rules that are kept {{ {"category": "by the category", "evaluation": "by the test images"}[suite] }}</h2>
<div class="card"><table>
{% for check in rules %}
<tr><td>{{ check.demand }}
{% if check.images %}
<details><summary>those outside</summary>
<ul>
{% for fault in check.images %}
<li>{{ fault.problem }}</li>
{% endfor %}
</ul>
</details>
{% endif %}
</td>
<td class="soft">
{%- if check.failing %}{{ check.failing }} of {{ check.checked }} outside, as is allowed
{%- elif check.checked is not none %}{{ check.checked }} checked
{%- endif -%}
</td>
<td><span class="tag good">✓ kept</span></td></tr>
{% endfor %}
</table></div>
{% endfor %}

{% if report.left_out %}
<h2>Files that are not used</h2>
<div class="card"><table>
{% for reason, files in report.left_out.items() %}
<tr><td>{{ files.count }} {{ "file" if files.count == 1 else "files" }}, each of which {{ reason }}
<details><summary>{{ files.names[0] }}{{ ", …" if files.count > 1 }}</summary>
<ul>
{% for name in files.names %}
<li>{{ name }}</li>
{% endfor %}
{% if files.count > files.names | length %}
<li>and {{ files.count - files.names | length }} that are not listed</li>
{% endif %}
</ul>
</details>
</td></tr>
{% endfor %}
</table></div>
{% endif %}

<footer class="soft">Data version {{ report.data_version }}</footer>
</main>
</body>
</html>
"""
