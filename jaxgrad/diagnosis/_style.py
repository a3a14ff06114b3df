"""The look of the HTML page and of the notebook fragment: colours for light and dark, and one style sheet."""

from __future__ import annotations

_LIGHT = {
    "paper": "#f8f8f6",
    "card": "#ffffff",
    "line": "#e3e3df",
    "grid": "#ecece8",
    "ink": "#1d1f22",
    "soft": "#5d6167",
    "good": "#1a7045",
    "on-accent": "#ffffff",
    "weights": "#3b6cc9",
    "activation": "#d06a00",
    "normalization": "#1f8a5f",
    "residual": "#8b46b8",
    "attention": "#c2346b",
    "other": "#8a8f96",
}
_DARK = {
    "paper": "#121316",
    "card": "#1a1c20",
    "line": "#2e3138",
    "grid": "#25282e",
    "ink": "#e7e8ea",
    "soft": "#a3a8b0",
    "good": "#5fcf97",
    "on-accent": "#121316",
    "weights": "#78a5ff",
    "activation": "#f5a04c",
    "normalization": "#4fc492",
    "residual": "#c58ff0",
    "attention": "#f283ab",
    "other": "#868c95",
}
# The accent of each verdict, on light and on dark.
_ACCENTS = {
    "healthy": ("#1a7045", "#5fcf97"),
    "vanishing": ("#2f55c8", "#8fabff"),
    "exploding": ("#b93c0c", "#ff9b6b"),
    "nonfinite": ("#9a1fa8", "#e594f2"),
    "dead": ("#4d5a68", "#b3c0ce"),
    "ill-conditioned": ("#7d5800", "#e6b84d"),
}
# How notebooks and documentation sites say that they are light or dark, whatever the system prefers.
_SAID_LIGHT = ('[data-jp-theme-light="true"]', ".vscode-light", '[data-theme="light"]', '[theme="light"]')
_SAID_DARK = ('[data-jp-theme-light="false"]', ".vscode-dark", '[data-theme="dark"]', '[theme="dark"]')

# Every rule starts at .jaxgrad.jaxgrad: twice, to win over the rules that notebooks have for tables and headings.
_RULES = """
J { background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
J *, J *::before { box-sizing: border-box; }
J main { max-width: 1120px; margin: 0 auto; padding: 36px 24px 48px; }
J h1, J h2, J h3, J p, J dl, J dd, J ol, J ul, J li, J figure { margin: 0; padding: 0; }
J h1 { font-size: clamp(20px, 2.6vw, 27px); line-height: 1.35; font-weight: 600; letter-spacing: -0.01em;
  max-width: 46em; text-wrap: pretty; overflow-wrap: anywhere; color: inherit; }
J h2 { font-size: 18px; line-height: 1.4; font-weight: 600; margin: 40px 0 12px; color: inherit; }
J h3 { font-size: 15px; line-height: 1.5; font-weight: 600; color: inherit; }
J ol, J ul { list-style: none; }
J code { font: 0.92em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  background: none; color: inherit; padding: 0; overflow-wrap: anywhere; }
J .soft { color: var(--soft); }
J .small { font-size: 13px; }
J h2 .small { font-weight: 400; }
J .top { display: flex; gap: 12px; align-items: center; justify-content: space-between; margin-bottom: 14px; }
J .badge { background: var(--accent); color: var(--on-accent); font-size: 13px; font-weight: 650; line-height: 1;
  padding: 7px 12px; border-radius: 99px; letter-spacing: 0.02em; white-space: nowrap; }
J .facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(112px, 1fr)); gap: 1px; margin-top: 24px;
  background: var(--line); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
J .facts > div { background: var(--card); padding: 11px 14px; }
J .facts dt { color: var(--soft); font-size: 12.5px; font-weight: 400; }
J .facts dd { font-size: 17px; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
J .facts .main dd { color: var(--accent); }
J .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; }
J .cards { display: grid; gap: 12px; }
J .finding { border-left: 4px solid var(--accent); }
J .finding h3 { display: flex; flex-wrap: wrap; gap: 2px 10px; align-items: baseline; }
J .finding h3 em { font-style: normal; color: var(--accent); }
J .finding h3 code { font-weight: 600; }
J .finding p { max-width: 70em; margin-top: 5px; overflow-wrap: anywhere; }
J .finding .foot { display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: center; margin-top: 9px;
  font-size: 13px; color: var(--soft); }
J .meter { display: inline-block; width: 64px; height: 5px; border-radius: 3px; background: var(--line);
  margin-right: 8px; vertical-align: 2px; overflow: hidden; }
J .meter i { display: block; height: 100%; background: var(--accent); }
J .remedies { padding: 0; }
J .remedies li { display: grid; grid-template-columns: 22px minmax(0, 1fr) minmax(0, 300px); gap: 2px 10px;
  align-items: center; padding: 12px 18px; border-top: 1px solid var(--line); }
J .remedies li:first-child { border-top: 0; }
J .remedies .mark { font-weight: 700; color: var(--soft); align-self: start; }
J .remedies .yes .mark, J .remedies .yes .outcome { color: var(--good); }
J .remedies .change { overflow-wrap: anywhere; }
J .remedies .change b { font-weight: 600; }
J .change code { background: var(--grid); border-radius: 4px; padding: 1px 5px; font-weight: 400; }
J .change code.line { display: block; margin: 6px 0; padding: 7px 10px; border-radius: 6px; white-space: pre-wrap; }
J .tried { color: var(--soft); }
J .tried li { padding: 3px 0 3px 18px; position: relative; overflow-wrap: anywhere; }
J .tried li::before { content: "~"; position: absolute; left: 2px; }
J .useless li::before { content: "✗"; }
J .tried .gains { margin-left: 8px; white-space: nowrap; }
J .training { grid-column: 2 / -1; display: grid; grid-template-columns: 44px minmax(0, 1fr) 124px;
  grid-template-rows: 92px 18px; margin-top: 12px; font-size: 12px; line-height: 16px; color: var(--soft);
  font-variant-numeric: tabular-nums; max-width: 760px; }
J .training .y, J .training .area, J .training .ends { position: relative; }
J .training .y span { position: absolute; right: 9px; transform: translateY(50%); white-space: nowrap; }
J .training .ends span { position: absolute; left: 10px; transform: translateY(50%); white-space: nowrap; }
J .training .ends b, J .training .ends .after { color: var(--ink); font-weight: 600; }
J .training .ends .before b { color: var(--soft); }
J .training .label { grid-column: 2; text-align: center; }
J .training svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
J .training .lost { position: absolute; transform: translate(-50%, 50%); font-size: 19px; font-weight: 700;
  line-height: 1; }
J .training .lost.after { color: var(--ink); }
J svg .loss { stroke: var(--soft); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
J svg .loss.after { stroke: var(--ink); }
J .yes svg .loss.after { stroke: var(--good); }
J .legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 10px; font-size: 13px; }
J .legend li { display: flex; align-items: center; gap: 7px; white-space: nowrap; }
J .legend i { width: 11px; height: 11px; border-radius: 2px; }
J .legend b { font-weight: 600; font-variant-numeric: tabular-nums; }
J .legend .most { font-weight: 600; }
J .fall { display: grid; grid-template-columns: minmax(0, max-content) minmax(0, 1fr) auto; column-gap: 10px;
  font-size: 12.5px; color: var(--soft); font-variant-numeric: tabular-nums; }
J .fall .who { grid-column: 1; align-self: center; max-width: 230px; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
J .fall .who.most { color: var(--ink); font-weight: 600; }
J .fall .amount { grid-column: 3; align-self: center; text-align: right; }
J .fall b { color: var(--ink); font-weight: 600; }
J .fall .area, J .fall .x { grid-column: 2; position: relative; }
J .fall .x span { position: absolute; top: 4px; transform: translateX(-50%); white-space: nowrap; font-size: 12px; }
J .fall svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
J .fall .end { position: absolute; left: 0; padding: 2px 6px; color: var(--accent); font-weight: 600;
  background: var(--card); border-radius: 4px; white-space: nowrap; }
J svg rect.s-weights { fill: var(--weights); } J .legend .s-weights { background: var(--weights); }
J svg rect.s-activation { fill: var(--activation); } J .legend .s-activation { background: var(--activation); }
J svg rect.s-normalization { fill: var(--normalization); }
J .legend .s-normalization { background: var(--normalization); }
J svg rect.s-residual { fill: var(--residual); } J .legend .s-residual { background: var(--residual); }
J svg rect.s-attention { fill: var(--attention); } J .legend .s-attention { background: var(--attention); }
J svg rect.s-other { fill: var(--other); } J .legend .s-other { background: var(--other); }
J svg rect.total { fill: var(--ink); } J .legend .total { background: var(--ink); }
J svg path.cone { fill: var(--soft); opacity: 0.16; }
J .remedies .outcome { font-size: 13px; color: var(--soft); }
J .gains { font-size: 13px; font-variant-numeric: tabular-nums; }
J .gains b { font-weight: 600; }
J .gains svg { display: block; width: 100%; height: 16px; overflow: visible; }
J .pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px; }
J .pictures .wide { grid-column: 1 / -1; }
J .chart figcaption { margin-bottom: 12px; text-align: left; }
J .chart figcaption p { color: var(--soft); font-size: 13px; line-height: 1.45; }
J .plot { display: grid; grid-template-columns: 44px minmax(0, 1fr); grid-template-rows: 210px 20px 18px;
  font-size: 12px; line-height: 16px; color: var(--soft); font-variant-numeric: tabular-nums; }
J .wide .plot { grid-template-rows: 270px 20px 18px; }
J .plot .y, J .plot .x, J .plot .area { position: relative; }
J .plot .x { grid-column: 2; }
J .plot .label { grid-column: 2; text-align: center; }
J .plot .y span { position: absolute; right: 9px; transform: translateY(50%); white-space: nowrap; }
J .plot .x span { position: absolute; top: 4px; transform: translateX(-50%); }
J .plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
J .plot .name { position: absolute; max-width: 60%; color: var(--accent); font-size: 12px; font-weight: 600;
  background: var(--card); padding: 0 5px; border-radius: 4px; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; pointer-events: none; }
J svg path { vector-effect: non-scaling-stroke; fill: none; }
J svg .grid { stroke: var(--grid); stroke-width: 1; }
J svg .zero { stroke: var(--line); stroke-width: 1; stroke-dasharray: 3 4; }
J svg .unit { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; opacity: 0.75; }
J svg .curve { stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
J svg .dot { stroke: var(--accent); stroke-width: 7; stroke-linecap: round; }
J svg .hole { stroke: var(--card); stroke-width: 3.5; stroke-linecap: round; }
J svg .mark { fill: var(--accent); opacity: 0.13; }
J svg .hit { fill: var(--ink); opacity: 0; }
J svg .hit:hover { opacity: 0.07; }
J svg .reach { fill: var(--accent); opacity: 0.2; }
J svg .half { fill: var(--accent); opacity: 0.5; }
J svg .median { stroke: var(--ink); stroke-width: 1.5; }
J svg .bars { fill: var(--accent); opacity: 0.8; }
J svg .from { stroke: var(--soft); stroke-width: 8; stroke-linecap: round; }
J svg .to { stroke: var(--soft); stroke-width: 8; stroke-linecap: round; }
J svg .way { stroke: var(--soft); stroke-width: 1.5; opacity: 0.7; }
J .yes svg .to { stroke: var(--good); }
J .histograms { display: grid; grid-template-columns: repeat(auto-fill, minmax(148px, 1fr)); gap: 18px 20px; }
J .histograms figcaption { font-size: 12.5px; line-height: 1.4; margin-bottom: 4px; text-align: left; }
J .histograms figcaption code { display: block; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
J .histograms svg { display: block; width: 100%; height: 52px; border-bottom: 1px solid var(--soft); }
J .histograms .ends { display: flex; justify-content: space-between; font-size: 12px; color: var(--soft);
  font-variant-numeric: tabular-nums; }
J .scroll { overflow: auto; max-height: min(70vh, 640px); background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
J .scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
J table { border-collapse: separate; border-spacing: 0; width: 100%; margin: 0; border: 0; font-size: 13px;
  line-height: 1.45; color: inherit; font-variant-numeric: tabular-nums; table-layout: auto; }
J th, J td { padding: 6px 12px; text-align: right; white-space: nowrap; font-weight: 400; border: 0; max-width: none;
  border-bottom: 1px solid var(--grid); background: var(--card); color: inherit; vertical-align: middle; }
J tbody tr:last-child > * { border-bottom: 0; }
J thead th { position: sticky; top: 0; z-index: 2; color: var(--soft); border-bottom: 1px solid var(--line); }
J th.text, J td.text { text-align: left; }
J tbody th { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 132px; position: sticky;
  left: 0; z-index: 1; }
J thead th:first-child { left: 0; z-index: 3; }
J tbody th code { font-size: 12.5px; }
J .blamed th { box-shadow: inset 3px 0 var(--accent); color: var(--accent); font-weight: 600; }
J .bar { display: block; width: 120px; height: 8px; border-radius: 2px; background: var(--grid); }
J .bar i { display: block; height: 100%; border-radius: 2px; background: var(--accent); }
J .notes { color: var(--soft); max-width: 70em; overflow-wrap: anywhere; }
J .notes li { padding-left: 16px; position: relative; margin-top: 4px; }
J .notes li::before { content: "•"; position: absolute; left: 2px; }
J footer { margin-top: 40px; padding-top: 14px; border-top: 1px solid var(--line); color: var(--soft);
  font-size: 13px; overflow-wrap: anywhere; }
J details { margin-top: 14px; }
J summary { cursor: pointer; font-weight: 600; }
J details[open] summary { margin-bottom: 10px; }
J.note { border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px; max-width: 900px; font-size: 14px; }
J.note h1 { font-size: 17px; }
J.note h2 { font-size: 15px; margin: 20px 0 8px; }
J.note .wide .plot { grid-template-rows: 170px 20px 18px; }
J.note .scroll { max-height: 360px; }
@media (max-width: 760px) {
  J main { padding: 22px 16px 36px; }
  J .pictures { grid-template-columns: minmax(0, 1fr); }
  J .wide .plot { grid-template-rows: 220px 20px 18px; }
  J .remedies li { grid-template-columns: 18px minmax(0, 1fr); padding: 12px 14px; }
  J .remedies .gains { grid-column: 2; margin-top: 4px; }
  J .card { padding: 14px; }
  J .card.remedies { padding: 0; }
  J .facts { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  J .facts > div:last-child:nth-child(odd) { grid-column: 1 / -1; }
  J .fall .who { max-width: 38vw; font-size: 11.5px; }
  J .training { grid-column: 1 / -1; margin-top: 20px; grid-template-columns: 38px minmax(0, 1fr) 118px; }
  J .fall .x span:nth-last-child(even) { display: none; }
  J h2 { margin-top: 28px; }
  J .histograms { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  J th, J td { padding: 6px 9px; }
}
@media print { J .scroll { max-height: none; overflow: visible; } J .card { break-inside: avoid; } }
"""


def style_sheet(verdict: str) -> str:
    """The style sheet of a page or fragment.

    Args:
      verdict: Chooses the accent colour.

    Returns:
      CSS in which every rule is confined to the class ``jaxgrad``, and the colours to that verdict.
    """
    light, dark = _ACCENTS[verdict]
    root = f".jaxgrad.v-{verdict}"
    on_light = _variables({**_LIGHT, "accent": light})
    on_dark = _variables({**_DARK, "accent": dark})
    return (
        f"{root} {{ color-scheme: light; {on_light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ {root} {{ color-scheme: dark; {on_dark} }} }}\n"
        f"{_under(_SAID_LIGHT, root)} {{ color-scheme: light; {on_light} }}\n"
        f"{_under(_SAID_DARK, root)} {{ color-scheme: dark; {on_dark} }}"
        f"{_RULES.replace('J', '.jaxgrad.jaxgrad')}"
    )


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def _under(ancestors: tuple[str, ...], root: str) -> str:
    return ", ".join(f"{ancestor} {root}" for ancestor in ancestors)
