"""How the page of a report looks, on a screen and printed."""

STYLE = """
:root { --ink: #222; --quiet: #666; --line: #e4e4e4; --blue: #1f5fa8; --orange: #c2571a; }
* { box-sizing: border-box; }
html { font-size: 16px; }
body { font: .95rem/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; color: var(--ink);
       background: #fff; max-width: 62rem; margin: 2.5rem auto 4rem; padding: 0 1.5rem; }
h1 { font-size: 1.55rem; font-weight: 600; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; font-weight: 600; margin: 2.4rem 0 .5rem; overflow-wrap: anywhere; }
.sub, .note { color: var(--quiet); overflow-wrap: anywhere; }
.sub { margin: .25rem 0 1.8rem; }
.note { margin: 0 0 .7rem; font-size: .9rem; }
.figures { display: flex; gap: 1rem 2.4rem; flex-wrap: wrap; }
.figures i { font-style: normal; font-weight: 600; }
.figures b { display: block; font-size: 2rem; font-weight: 600; line-height: 1.25; color: var(--blue);
       font-variant-numeric: tabular-nums; }
.figures span { display: block; color: var(--quiet); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.rows, .pairs { width: 100%; font-size: .92rem; }
.rows th, .rows td, .pairs td { border-top: 1px solid var(--line); padding: .28rem .8rem .28rem 0; text-align: left;
       vertical-align: top; }
.rows td { max-width: 16rem; overflow-wrap: break-word; } .pairs td { overflow-wrap: anywhere; }
.rows th { font-weight: 600; color: var(--quiet); border-top: 0; vertical-align: bottom; }
.rows .number { text-align: right; white-space: nowrap; width: 1%; }
.wide td.number { white-space: normal; width: auto; }
.rows tr > :last-child { padding-right: 0; }
.pairs td:first-child { color: var(--quiet); white-space: nowrap; width: 14rem; }
.beside { display: flex; flex-wrap: wrap; gap: 0 3rem; }
.beside section { flex: 1 1 min-content; min-width: min(22rem, 100%); max-width: 100%; }
.square { font-size: .8rem; }
.square th { font-weight: 400; color: var(--quiet); text-align: right; padding: 0 .5rem 0 0; white-space: nowrap;
       max-width: 11rem; overflow: hidden; text-overflow: ellipsis; }
.square thead th { vertical-align: bottom; text-align: left; padding: 0 0 .35rem; height: 1rem; }
.square thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 11rem; overflow: hidden;
       text-overflow: ellipsis; display: inline-block; line-height: 1; }
.square tbody td { width: 2.3rem; min-width: 2.3rem; height: 2.3rem; padding: 0; text-align: center;
       border: 1px solid #f0f0f0; }
.square .dark { color: #fff; }
.fine { font-size: .68rem; } .fine tbody td { width: .95rem; min-width: .95rem; height: .95rem; }
.plot { display: block; width: 100%; max-width: 29rem; font-size: 11px; }
.plot text { fill: var(--quiet); } .plot .small { font-size: 10px; }
.plot .grid { stroke: var(--line); fill: none; } .plot .ideal { stroke: #999; stroke-dasharray: 4 4; }
.plot .bar { fill: #bcd2ea; } .plot .count { fill: #d6d6d6; }
.plot .dot { fill: var(--blue); } .plot .whisker { stroke: var(--blue); stroke-width: 1.5; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.6rem, 1fr)); gap: 1.1rem .9rem; }
.mistakes figure { margin: 0; break-inside: avoid; }
.mistakes img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 3px;
       background: #f3f3f3; }
.mistakes .coarse { image-rendering: pixelated; }
.mistakes figcaption { font-size: .84rem; line-height: 1.35; margin-top: .35rem; overflow-wrap: anywhere; }
.mistakes b { color: var(--orange); font-weight: 600; } small { color: var(--quiet); }
.curves { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.curves img { flex: 1 1 20rem; min-width: 0; max-width: 100%; }
pre { background: #f7f7f7; padding: 1rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem;
       line-height: 1.4; }
@media (max-width: 40rem) {
  body { margin-top: 1.5rem; padding: 0 1rem; }
  .pairs td:first-child { white-space: normal; width: 8rem; }
}
@page { margin: 16mm 14mm; }
@media print {
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  html { font-size: 11px; }
  body { max-width: none; margin: 0; padding: 0; }
  h2 { break-after: avoid; margin-top: 1.8rem; }
  .note { break-after: avoid; }
  tr, .figures, .beside section, .plot, .curves { break-inside: avoid; }
  .scroll { overflow: visible; }
  thead { display: table-header-group; }
  .mistakes { grid-template-columns: repeat(8, 1fr); }
  pre { background: none; padding: 0; columns: 3; }
}
"""
