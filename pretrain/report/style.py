"""How a page looks, on a phone, by day, by night and on paper; and the one script it has."""

from __future__ import annotations

import base64
import hashlib

from pretrain.curves import COLOURS

PAGE_LIGHT, PAGE_DARK = "#ffffff", "#14181c"
# The same hues as COLOURS, for dark pages: at least 4.5 : 1 on PAGE_DARK.
COLOURS_DARK = ("#62b0ee", "#f2924f", "#48c79d", "#8b7cf6", "#9fe3ff", "#f28b8b")
INKS_LIGHT = {
    "ink": "#1c2126",
    "soft": "#56616b",
    "line": "#d5dbe1",
    "page": PAGE_LIGHT,
    "card": "#f4f6f8",
    "good": "#1a7049",
    "fair": "#8a5600",
    "bad": "#b3302a",
    "accent": "#1f5f9e",
}
INKS_DARK = {
    "ink": "#e4e8ec",
    "soft": "#a3aeb9",
    "line": "#39424b",
    "page": PAGE_DARK,
    "card": "#1c2228",
    "good": "#5cc596",
    "fair": "#e0a94a",
    "bad": "#f08a80",
    "accent": "#85baee",
}


def _variables(inks: dict[str, str], colours: tuple[str, ...]) -> str:
    named = inks | {f"c{number + 1}": colour for number, colour in enumerate(colours)}
    return " ".join(f"--{name}: {colour};" for name, colour in named.items())


STYLE = (
    f"""
:root {{ color-scheme: light dark; {_variables(INKS_LIGHT, COLOURS)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(INKS_DARK, COLOURS_DARK)} }} }}
"""
    + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 72rem; padding: 1.6rem clamp(1rem, 3vw, 2rem) 4rem; background: var(--page);
  color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: clamp(1.5rem, 5vw, 2rem); line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.8rem 0 .7rem; padding-top: 1rem; border-top: 1px solid
  var(--line); }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
p { margin: .45rem 0; max-width: 46rem; }
ul { padding-left: 1.2rem; max-width: 46rem; }
li { margin: .25rem 0; }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.lead { font-size: 1.06rem; }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.word { display: inline-block; padding: .1rem .65rem; border-radius: 1rem; border: 1.5px solid currentColor;
  font-size: .85rem; font-weight: 600; vertical-align: .25rem; white-space: nowrap; }
h1 .word { margin-left: .4rem; }
td .word { vertical-align: baseline; }
.good { color: var(--good); } .fair { color: var(--fair); } .bad { color: var(--bad); }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; padding: 0; margin: 1.2rem 0 0;
  font-size: .92rem; max-width: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 8.4rem), 1fr)); gap: .7rem;
  margin: 1.2rem 0; }
.card { background: var(--card); border-radius: .6rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
figure { margin: 1.2rem 0; min-width: 0; }
figcaption { margin-top: .45rem; max-width: 46rem; }
figure img, figure svg { max-width: 100%; height: auto; display: block; }
figure svg { width: 100%; max-width: 34rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: .6rem
  2.4rem; }
svg text { font-family: inherit; }
.wide svg { max-width: 100%; }
.scroll { overflow-x: auto; max-width: 100%; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; font-size:
  .95rem; }
caption { text-align: left; padding: .2rem 0 .4rem; }
th, td { text-align: right; padding: .35rem .75rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 400; }
.words td, .words th { text-align: left; overflow-wrap: break-word; min-width: 4rem; max-width: 30rem; }
.sort { border-collapse: separate; border-spacing: 0; }
.sort td, .sort th { padding: .35rem .55rem; }
.sort thead th:first-child { z-index: 1; }
.sort th:first-child { position: sticky; left: 0; min-width: 7rem; background: var(--page); padding-left: 0; }
thead th { font-weight: 600; vertical-align: bottom; }
thead small { display: block; font-weight: 400; color: var(--soft); }
tr.ours td, tr.ours th { font-weight: 650; }
td small, tbody th small { display: block; font-weight: 500; white-space: nowrap;
  font-size: .85em !important; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0;
  margin: 0; cursor: pointer; text-align: inherit; }
th button::after { content: "\\00a0↕"; color: var(--soft); }
th[aria-sort=ascending] button::after { content: "\\00a0↑"; color: var(--accent); }
th[aria-sort=descending] button::after { content: "\\00a0↓"; color: var(--accent); }
pre, code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .87rem; }
pre { background: var(--card); border-radius: .6rem; padding: .8rem 1rem; overflow-x: auto; overflow-wrap:
  normal; }
pre.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .6rem 0; }
details summary { cursor: pointer; color: var(--accent); }
.bar { display: flex; height: 1.3rem; border-radius: .4rem; overflow: hidden; max-width: 46rem;
  margin: .7rem 0 .4rem; gap: 2px; }
.bar i { min-width: 2px; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; list-style: none; padding: 0;
  margin: .4rem 0 1rem; }
.key i { display: inline-block; width: .85rem; height: .85rem; border-radius: .2rem; margin-right: .45rem;
  vertical-align: -.08rem; }
.key i.again { background: repeating-linear-gradient(90deg, currentColor 0 4px, transparent 4px 7px)
  !important; }
.line svg { display: block; width: 100%; max-width: 46rem; height: auto; }
.try { border-left: 3px solid var(--accent); padding: .1rem 0 .1rem .9rem; margin: 1rem 0;
  max-width: 50rem; }
.try p { margin: .2rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: .6rem 0; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; }
@media (max-width: 34rem) {
  th, td { padding: .35rem .45rem; }
  dl { grid-template-columns: 1fr; }
  dd { margin-bottom: .4rem; }
}
"""
    + f"""
@media print {{
  :root {{ {_variables(INKS_LIGHT, COLOURS)} }}
  @page {{ margin: 14mm; }}
  html {{ font-size: 9.5pt; }}
  body {{ max-width: none; padding: 0; }}
"""
    + """
  nav, th button::after { display: none; }
  th button::after { content: none !important; }
  h2, h3, caption { break-after: avoid; }
  h2 { margin-top: 1.4rem; }
  figure, .card, tr, .try, .bar, .key, .line, dl { break-inside: avoid; }
  .grid { grid-template-columns: 1fr 1fr; }
  .scroll, pre { overflow: visible; }
  .sort { font-size: .75rem; }
  .sort td, .sort th { padding: .25rem .3rem; }
  .sort th:first-child { position: static; min-width: 0; }
  th, td { padding: .25rem .45rem; }
  td small, tbody th small { white-space: normal; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  .bar i, .key i { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  a[href^="http"]::after { content: " (" attr(href) ")"; }
  details:not([open]) summary::after { content: " (folded: open it on the page before printing)"; }
}
"""
)

# Tables of class sort get a button in each head; folded parts are opened for paper. Without it, all is there.
SCRIPT = """
"use strict";
const key = (row, at) => {
  const cell = row.cells[at], given = cell.dataset.v;
  if (given === undefined) return cell.textContent.trim().toLowerCase();
  const value = Number(given);
  return given !== "" && !Number.isNaN(value) ? value : given === "nan" ? null : given.toLowerCase();
};
for (const table of document.querySelectorAll("table.sort")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  heads.forEach((head, at) => {
    const button = document.createElement("button"), small = head.querySelector("small");
    button.type = "button";
    button.append(...[...head.childNodes].filter((node) => node !== small));
    head.prepend(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const first = typeof key(body.rows[0], at) === "string" ? "ascending" : "descending";
      const order = before === "none" ? first : before === "ascending" ? "descending" : "ascending";
      const sign = order === "ascending" ? 1 : -1;
      for (const other of heads) other.setAttribute("aria-sort", other === head ? order : "none");
      const rows = [...body.rows].map((row) => [key(row, at), row]);
      rows.sort(([a], [b]) => a === null ? (b === null ? 0 : 1) : b === null ? -1
        : a < b ? -sign : a > b ? sign : 0);
      body.append(...rows.map(([, row]) => row));
    });
  });
}
const folded = [];
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details:not([open])")) {
    each.open = true;
    folded.push(each);
  }
});
addEventListener("afterprint", () => { for (const each of folded.splice(0)) each.open = false; });
"""

_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
# Nothing is fetched, nothing but this script runs: whatever a data set smuggles into the page stays text.
POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{_HASH}'; "
    f"base-uri 'none'; form-action 'none'"
)


def whole_page(title: str, body: str) -> str:
    """A page around its content. title, body: HTML, with all text in it escaped."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}: foreframe</title><style>{STYLE}</style></head>"
        f"<body>{body}<script>{SCRIPT}</script></body></html>\n"
    )
