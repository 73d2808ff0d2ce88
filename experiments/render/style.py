"""The look of report.html: one style sheet, light and dark, from the width of a phone up."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f8; --card: #ffffff; --ink: #1d2126; --soft: #5b636d; --line: #e1e5e9;
  --accent: #0b6aa8; --tint: #e9f3fa; --bar: #7db8de; --warn: #b0510a; --warn-bar: #e3a878;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121518; --card: #1a1e22; --ink: #e6e9ec; --soft: #9ba4ae; --line: #2c3238;
    --accent: #6db9ea; --tint: #16303f; --bar: #2f6f99; --warn: #f0a468; --warn-bar: #8a5528;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1200px; margin: 0 auto; padding: 40px 24px 64px; }
h1, h2, p, figure, dl, ul { margin: 0; }
h1 { font-size: 1.75rem; line-height: 1.25; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-bottom: 12px; }
section { margin-top: 40px; }
.eyebrow { color: var(--accent); font-weight: 600; font-size: .85rem; margin-bottom: 6px; }
.headline { font-size: 1.1rem; max-width: 68ch; margin-top: 12px; overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: .875rem; max-width: 90ch; margin-top: 10px; overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }

.key-figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; }
.key-figures .card { padding: 16px 18px; display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.key-figures dt { color: var(--soft); font-size: .875rem; }
.key-figures dd { margin: 0; font-size: 1.9rem; font-weight: 650; line-height: 1.2; letter-spacing: -.02em; }
.key-figures .worse dd { color: var(--warn); }
.key-figures small { display: block; color: var(--soft); font-size: .8125rem; }

.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .875rem; }
td { font-variant-numeric: tabular-nums; }
.ratios td { width: 17%; }
th, td { padding: 8px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 500; font-size: .8125rem; }
th[colspan], th[rowspan] { color: var(--ink); font-weight: 600; }
th[colspan] { border-bottom: 0; padding-bottom: 0; text-align: left; }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
tbody th { font-weight: 600; }
tbody th span { display: block; font-weight: 400; font-size: .75rem; color: var(--accent); }
.first { border-left: 1px solid var(--line); }
.deployed > *, .deployed th:first-child { background: var(--tint); }
.bar { display: block; height: 4px; margin: 4px 0 0 auto; border-radius: 2px; background: var(--bar); min-width: 1px; }
.worse .bar { background: var(--warn-bar); }
td.worse { color: var(--warn); }

.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 20px; }
.plots figure { padding: 18px; }
.plots img { display: block; width: 100%; height: auto; mix-blend-mode: multiply; }
figcaption { color: var(--soft); font-size: .8125rem; margin-top: 10px; }
@media (prefers-color-scheme: dark) {
  .plots img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
}

.notes { list-style: none; padding: 0; }
.notes li { padding: 10px 16px; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.notes li:last-child { border-bottom: 0; }
.notes b { margin-right: 8px; }
pre {
  margin: 0; padding: 14px 16px; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .8125rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
pre.copy { user-select: all; -webkit-user-select: all; }
.facts {
  display: grid; grid-template-columns: max-content 1fr; gap: 6px 20px; padding: 16px; margin-top: 14px;
  font-size: .875rem;
}
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
details { margin-top: 14px; }
summary { cursor: pointer; padding: 12px 16px; font-weight: 600; font-size: .9375rem; }
details pre { border-top: 1px solid var(--line); }

@media (max-width: 600px) {
  main { padding: 24px 16px 48px; }
  h1 { font-size: 1.4rem; }
  .key-figures { grid-template-columns: 1fr 1fr; gap: 10px; }
  .key-figures .card { padding: 12px 14px; }
  .key-figures .card:first-child { grid-column: 1 / -1; }
  .key-figures dd { font-size: 1.5rem; }
  .plots figure { padding: 12px; }
  .facts { gap: 6px 12px; }
}
@media print { body { background: none; } .card { break-inside: avoid; } }
"""
