"""The look of the report's page: calm, for wide and narrow screens, light and dark."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2430; --quiet: #5a6675; --line: #e1e5ea;
  --accent: #0a62a5; --tint: #eaf3fb; --warn: #9a4a00; --warn-tint: #fdf1e3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1a2029; --ink: #e6eaf0; --quiet: #9aa7b6; --line: #2c3541;
    --accent: #7cc0f7; --tint: #1d2f40; --warn: #f2b070; --warn-tint: #33271a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
header, main { max-width: 74rem; margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2.5rem); }
header { padding-top: clamp(1.75rem, 5vw, 3.5rem); }
main { padding-bottom: 3rem; }
h1 { margin: 0 0 .5rem; font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; letter-spacing: -.015em; }
h2 { margin: 2.75rem 0 .75rem; font-size: 1.2rem; letter-spacing: -.005em; }
h1, h2, p, li, dd, td, th { overflow-wrap: anywhere; }
p { margin: 0 0 .75rem; max-width: 46rem; }
.lead { color: var(--quiet); font-size: 1.1rem; }
.quiet { color: var(--quiet); font-size: .9rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }

.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.75rem 0 0;
}
.figures div { padding: 1rem 1.1rem; }
.figures dt { color: var(--quiet); font-size: .85rem; }
.figures dd { margin: 0; }
.figures .value { font-size: 1.6rem; font-weight: 650; line-height: 1.3; letter-spacing: -.02em; white-space: nowrap; }
.figures .gain, .figures .against { color: var(--quiet); font-size: .85rem; }

.scroll { overflow-x: auto; margin-bottom: 1rem; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .8rem; text-align: right; white-space: nowrap; }
thead th { color: var(--quiet); font-weight: 500; font-size: .82rem; }
thead tr:first-child th { padding-bottom: 0; color: var(--ink); font-weight: 600; }
thead th[scope=colgroup] { text-align: left; padding-left: .8rem; }
thead tr:last-child th { border-bottom: 1px solid var(--line); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody th { position: sticky; left: 0; background: var(--card); text-align: left; font-weight: 500; }
thead tr:first-child th:first-child { text-align: left; border-bottom: 1px solid var(--line); }
.start { border-left: 1px solid var(--line); }
tbody .deployed > * { background: var(--tint); font-weight: 650; }
.mark { display: block; color: var(--accent); font-size: .72rem; font-weight: 600; }

.notes { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem; }
.notes li { padding: .7rem 1rem; border-left: 4px solid var(--line); }
.notes li.worse { border-left-color: var(--warn); background: var(--warn-tint); }
.notes b { margin-right: .4rem; }

figure { margin: 0; padding: clamp(.5rem, 2vw, 1.25rem); }
figure.card { background: #ffffff; }
figure .scroll { margin: 0; }
figure img { display: block; width: 100%; min-width: 36rem; max-width: 60rem; height: auto; margin: 0 auto; }
figcaption { padding: .75rem .25rem 0; color: #5a6675; font-size: .875rem; text-align: center; }

.facts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 13rem), 1fr)); gap: .75rem 1.5rem;
  margin: 0; padding: 1.1rem;
}
.facts dt { color: var(--quiet); font-size: .82rem; }
.facts dd { margin: 0; }
pre {
  overflow-x: auto; margin: 0; padding: 1rem 1.1rem;
  font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
details { margin-top: 2.75rem; }
summary { padding: .9rem 1.1rem; cursor: pointer; font-weight: 600; }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""
