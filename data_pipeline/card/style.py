"""The card's inline style: the look of the run report, with sheets of pictures."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5b6670; --line: #d9dee3; --page: #fff; --card:
  #f5f7f9; --good: #1d7a50; --fair: #9a6100; --bad: #b3372f; --accent: #2f6fb0; --out: #dd7e2b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa6b1; --line: #343c44; --page:
  #14181c; --card: #1c2228; --good: #5cc596; --fair: #e0a94a; --bad: #f08a80; --accent: #7fb5ea; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem; background:
  var(--page); color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
p { margin: .4rem 0; max-width: 50rem; }
ul { margin: .4rem 0; padding-left: 1.2rem; max-width: 50rem; }
li { margin: .25rem 0; }
.lead { font-size: 1.06rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.word { display: inline-block; padding: .1rem .65rem; border-radius: 1rem; border: 1.5px solid currentColor;
  font-size: .85rem; font-weight: 600; vertical-align: .25rem; margin-left: .5rem; color: var(--soft); }
.fair { color: var(--fair); }
.bad { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .7rem; margin:
  1.2rem 0; }
.card { background: var(--card); border-radius: .6rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; min-width: 0; }
figcaption { margin-top: .35rem; max-width: 46rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: .5rem
  2.5rem; align-items: start; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.1rem
  1.2rem; margin: .8rem 0 1.6rem; }
.sheet figure { margin: 0; }
.sheet img { display: block; width: 100%; height: 4.3rem; object-fit: contain; object-position: left; }
.sheet figcaption { font-size: .8rem; line-height: 1.45; }
.sheet b { color: var(--ink); font-weight: 600; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; }
svg text { font: 11px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--soft);
  font-variant-numeric: tabular-nums; }
svg .strong { fill: var(--ink); font-weight: 600; }
svg .rule { stroke: var(--line); }
svg .tick { stroke: var(--soft); }
svg .page { fill: var(--page); }
svg line.threshold { stroke: var(--bad); stroke-width: 1.4; stroke-dasharray: 4 3; }
svg text.threshold { fill: var(--bad); }
svg .kept { fill: var(--accent); }
svg .out { fill: var(--out); }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: .15rem; margin: 0 .35rem -.05rem
  .6rem; background: var(--accent); }
.key:first-child { margin-left: 0; }
.key.out { background: var(--out); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; overflow-wrap:
  normal; font-size: .95rem; }
th, td { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid var(--line); vertical-align:
  top; white-space: nowrap; }
th:first-child, td:first-child, .last-words td:last-child { text-align: left; white-space: normal;
  overflow-wrap: anywhere; min-width: 8rem; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: .1rem; }
.grid th, .grid td { padding-inline: .55rem; }
.grid th:first-child, .grid td:first-child { padding-left: 0; }
.grid th:last-child, .grid td:last-child { padding-right: .1rem; }
.last-words th:last-child { text-align: left; }
.words td:first-child, .last-words td:last-child { min-width: 15rem; }
.last-words tr td { padding-bottom: .45rem; }
thead th { font-weight: 600; white-space: nowrap; }
td small { display: block; color: var(--soft); }
.percent { display: inline-block; min-width: 3.6rem; }
.share { display: inline-block; width: 4rem; height: .4rem; margin: 0 0 .1rem; background: var(--line);
  border-radius: .2rem; overflow: hidden; }
.share i { display: block; height: 100%; background: var(--accent); }
pre, code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .87em; }
pre { background: var(--card); border-radius: .6rem; padding: .8rem 1rem; overflow-x: auto; overflow-wrap:
  normal; font-size: .87rem; }
details { margin: .6rem 0; }
details summary { cursor: pointer; color: var(--accent); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: .6rem 0; }
dt { color: var(--soft); }
dd { margin: 0; }
@media (max-width: 34rem) { .share { display: none; } .percent { min-width: 0; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } th, td { padding: .3rem .5rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } h2, h3 { break-after: avoid; } figure,
  .card, tr { break-inside: avoid; } details:not([open]) { display: none; } }
"""
