"""The style sheet and script of a page, both embedded in it."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #faf8f5; --card: #ffffff; --ink: #211d1b; --soft: #6d655f; --line: #e5dfd7; --grid: #ece7e0;
  --accent: #8a2d6c; --wave: #8a2d6c; --prompt: #d97a1f; --shade: rgb(217 122 31 / .13);
  --c0: #8a2d6c; --c1: #c99bbb; --l0: #857a70; --l1: #b36a17; --l2: #2f7d76;
  --under: var(--paper); --edge: rgb(60 40 20 / .22);
  --shadow: 0 1px 2px rgb(60 40 20 / .06), 0 6px 20px rgb(60 40 20 / .05);
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --serif: ui-serif, "Iowan Old Style", "Palatino Linotype", Palatino, Charter, Georgia, serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #151214; --card: #1e1a1d; --ink: #ece6e3; --soft: #a59b98; --line: #352e33; --grid: #2c262a;
    --accent: #f0a777; --wave: #f0a777; --prompt: #ffc37a; --shade: rgb(255 195 122 / .15);
    --c0: #f0a777; --c1: #7d5a4c; --l0: #968b88; --l1: #dcc05e; --l2: #6cc3b8;
    --shadow: none; --edge: rgb(0 0 0 / .75);
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.55 var(--sans); }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
main.wide { max-width: 108rem; }
h1, h2, h3 { font-family: var(--serif); line-height: 1.2; text-wrap: balance; overflow-wrap: anywhere; margin: 0; }
h1 { font-size: clamp(1.9rem, 1.4rem + 2.4vw, 3rem); font-weight: 600; letter-spacing: -.015em; }
h2 { font-size: clamp(1.35rem, 1.2rem + .7vw, 1.75rem); font-weight: 600; letter-spacing: -.01em; }
h3 { font-size: 1.05rem; font-weight: 600; }
p { margin: .6rem 0 0; max-width: 42rem; overflow-wrap: anywhere; }
ul, ol { margin: .6rem 0 0; padding-left: 1.3rem; max-width: 42rem; }
li { margin: .2rem 0; }
a { color: var(--accent); text-underline-offset: .2em; text-decoration-thickness: 1px; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 4px; }
.lead { font-size: 1.12rem; color: var(--soft); }
.note { color: var(--soft); font-size: .875rem; line-height: 1.45; }
.notice { border: 1px solid var(--prompt); border-left-width: 5px; border-radius: 6px; background: var(--shade);
  padding: .6rem .9rem; margin-top: 1.2rem; }
nav { display: flex; flex-wrap: wrap; gap: .4rem 1.25rem; margin-top: 1.4rem; padding: .7rem 0;
  border-block: 1px solid var(--line); font-size: .925rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { margin-top: 3.2rem; }
section > h2 + * { margin-top: .7rem; }
section > * + .card, section > * + details, .columns h3 + .card, .columns h3 + details { margin-top: 1.3rem; }
.columns { display: grid; gap: 1.5rem; margin-top: 1.3rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); align-items: start; }
.columns > *, .clips > * { min-width: 0; }
.columns > div > h3 { padding-bottom: .45rem; border-bottom: 2px solid var(--accent); }
.clips { display: grid; gap: 1.1rem; margin-top: 1.3rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
.rows { display: grid; gap: .8rem; margin-top: 1.3rem; overflow-x: auto; padding-bottom: .4rem;
  grid-template-columns: repeat(var(--length), minmax(15rem, 1fr)); }
.rows .area.wave { height: 2.5rem; } .rows .area.mel { height: 6rem; }
.slider { margin-top: 1.3rem; }
.slider label { display: grid; grid-template-columns: auto minmax(6rem, 1fr) minmax(7rem, auto); gap: .2rem 1rem;
  align-items: center; position: sticky; top: 0; z-index: 1; background: var(--paper); padding: .3rem 0; }
.slider input { width: 100%; height: 2rem; margin: 0; accent-color: var(--accent); }
.slider output { font-weight: 600; font-variant-numeric: tabular-nums; color: var(--accent); }
.slider .kind { font-weight: 600; }
.slider.live .stop > .kind { display: none; }
.slider .clips { margin-top: .5rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1rem 1rem .8rem;
  box-shadow: var(--shadow); min-width: 0; margin: 0; }
.clips > :not(.clip) { align-self: start; }
.clip { display: flex; flex-direction: column; }
.clip .note { margin: .2rem 0 0; }
.clip .kind { font: 600 .72rem/1.3 var(--sans); letter-spacing: .07em; text-transform: uppercase;
  color: var(--accent); margin: 0 0 .15rem; }
.clip audio { width: 100%; height: 3.3rem; margin: auto 0 .7rem; display: block; padding-top: .7rem; }
.trouble { color: var(--prompt); }
.plot { display: grid; grid-template-columns: 2.9rem minmax(0, 1fr); margin: 0; font-size: .7rem; line-height: 1;
  color: var(--soft); font-variant-numeric: tabular-nums; }
.plot .y, .plot .x { position: relative; }
.plot .y span { position: absolute; right: .5rem; transform: translateY(50%); white-space: nowrap; }
.plot .x { grid-column: 2; height: 2.1rem; }
.plot .x span { position: absolute; top: .4rem; transform: translateX(-50%); white-space: nowrap; }
.plot .x span:first-child { transform: none; }
.plot .x .end { transform: translateX(-100%); }
.plot .x b { position: absolute; left: 50%; top: 1.3rem; transform: translateX(-50%); font-weight: 500; }
.plot .unit { position: absolute; right: .5rem; top: .1rem; font-weight: 500; }
.area { position: relative; border: 1px solid var(--line); border-radius: 5px; overflow: hidden; }
.area svg, .area img { position: absolute; inset: 0; width: 100%; height: 100%; display: block; }
.area .grid { stroke: var(--grid); stroke-width: 1; vector-effect: non-scaling-stroke; }
.area.wave { height: 5rem; margin-bottom: .4rem; }
.area.mel { height: 10rem; }
.area.chart { height: clamp(15rem, 40vw, 22rem); }
.area.wave .sound { fill: var(--wave); stroke: var(--wave); stroke-width: .6; vector-effect: non-scaling-stroke; }
.clip .area { cursor: pointer; }
.clip .area::after { content: ""; position: absolute; top: 0; bottom: 0; left: calc(var(--at, -1) * 100%); width: 2px;
  background: #fff; mix-blend-mode: difference; opacity: .85; }
.prompt { position: absolute; inset: 0 auto 0 0; border-right: 2px dashed var(--prompt); background: var(--shade);
  pointer-events: none; }
.mel .prompt { background: none; }
.prompt b { position: absolute; left: .4rem; top: .3rem; color: var(--prompt); font-weight: 600; font-size: .7rem;
  letter-spacing: .03em; white-space: nowrap; background: var(--card); padding: .1rem .25rem; border-radius: 3px; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; vector-effect: non-scaling-stroke; }
.level { stroke-width: 1.5; stroke-dasharray: 6 4; vector-effect: non-scaling-stroke; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); stroke-width: 1.3; }
.l0 { stroke: var(--l0); } .l1 { stroke: var(--l1); } .l2 { stroke: var(--l2); }
.mark { position: absolute; right: .5rem; transform: translateY(-50%); font-size: .75rem; font-weight: 600;
  background: var(--card); padding: .1rem .3rem; border-radius: 3px; white-space: nowrap; }
.mark.l0, .key .l0 { color: var(--l0); } .mark.l1, .key .l1 { color: var(--l1); }
.mark.l2, .key .l2 { color: var(--l2); } .key .c0 { color: var(--c0); } .key .c1 { color: var(--c1); }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: 0; margin: .2rem 0 .9rem; list-style: none;
  font-size: .85rem; color: var(--soft); font-variant-numeric: tabular-nums; max-width: none; }
.key i { display: inline-block; width: 1.3rem; margin-right: .4rem; border-top: 3px solid currentColor;
  vertical-align: .22em; }
.key i.level { border-top: 2px dashed currentColor; }
.ramp { display: flex; align-items: center; gap: .5rem; font-size: .8rem; color: var(--soft); margin-top: .8rem;
  white-space: nowrap; }
.ramp i { flex: 0 1 9rem; min-width: 3rem; height: .7rem; border-radius: 3px; }
.card, details { --under: var(--card); }
/* Shadows at the edges show that there is more to scroll: their covers scroll along, the shadows stay. */
.scroll { overflow-x: auto; margin-top: 1rem; background:
  linear-gradient(90deg, var(--under) 40%, transparent) 0 / 2.5rem 100% no-repeat local,
  linear-gradient(270deg, var(--under) 40%, transparent) 100% / 2.5rem 100% no-repeat local,
  linear-gradient(90deg, var(--edge), transparent) 0 / .9rem 100% no-repeat scroll,
  linear-gradient(270deg, var(--edge), transparent) 100% / .9rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .925rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .875rem; padding-bottom: .5rem;
  max-width: min(42rem, 100vw - 2.5rem); }
th, td { padding: .5rem 1.2rem .5rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; font-size: .8rem; color: var(--soft); vertical-align: bottom; }
tbody th { font-weight: 500; }
th.n, td.n { text-align: right; }
th:last-child, td:last-child { padding-right: .2rem; }
.card > .scroll:first-child { margin-top: -.3rem; }
.card > p:first-child { margin-top: 0; }

tr.main th, tr.main td { font-weight: 700; color: var(--accent); }
dl { margin: 1rem 0 0; max-width: 42rem; font-size: .9rem; }
dt { font-weight: 600; } dd { margin: .1rem 0 .6rem; color: var(--soft); }
figure.picture { margin: 1.3rem 0 0; }
figure.picture .scroll { margin: 0; border-radius: 10px; display: grid; scroll-timeline: --sideways inline; }
/* A picture hides the shadow behind it, so this one lies above it. Without overflow, it has no timeline to run on. */
figure.picture .scroll::after { content: ""; grid-area: 1 / 1; position: sticky; right: 0; justify-self: end;
  width: 1.4rem; background: linear-gradient(270deg, rgb(60 40 20 / .4), transparent); opacity: 0; pointer-events: none;
  animation: rest linear; animation-timeline: --sideways; }
@keyframes rest { from { opacity: 1; } 90% { opacity: 1; } to { opacity: 0; } }
figure.picture img { grid-area: 1 / 1; max-width: 100%; height: auto; border-radius: 10px; background: #fff;
  display: block; }
figcaption { color: var(--soft); font-size: .875rem; margin-top: .4rem; max-width: 42rem; }
details { border: 1px solid var(--line); border-radius: 12px; background: var(--card); min-width: 0; margin-top: 1rem; }
summary { cursor: pointer; padding: .75rem 1rem; font-weight: 600; }
details > :not(summary) { margin: 0 1rem 1rem; }
code, pre { font: .8rem/1.5 var(--mono); }
code { font-size: .88em; line-height: inherit; white-space: nowrap; }
pre { overflow-x: auto; margin: .6rem 0 0; white-space: pre; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line); }
@media (max-width: 40rem) {
  main { padding: 1.6rem .9rem 3rem; }
  section { margin-top: 2.5rem; }
  .card { padding: .85rem .75rem .6rem; border-radius: 12px; }
  .plot { grid-template-columns: 2.6rem minmax(0, 1fr); }
  th, td { padding-right: .8rem; }
  table { font-size: .85rem; }
  .slider label { grid-template-columns: 1fr auto; }
  .slider input { grid-row: 2; grid-column: 1 / 3; }
}
@media print { .clip { break-inside: avoid; } nav { display: none; } }
"""

# Play one clip at a time, show its position on the pictures, and play from where a picture is tapped; show what a
# slider is set to. Players work without the script too, also by keyboard. It may run again, as in a notebook.
SCRIPT = """
for (const clip of document.querySelectorAll(".clip:not(.live)")) {
  clip.classList.add("live");
  const player = clip.querySelector("audio");
  if (!player) continue;
  const span = Number(clip.dataset.span);
  const show = () => clip.style.setProperty("--at", player.currentTime / span);
  const follow = () => { show(); if (!player.paused) requestAnimationFrame(follow); };
  player.addEventListener("play", () => {
    if (player.paused) return;  // by then
    for (const other of document.querySelectorAll("audio")) if (other !== player) other.pause();
    follow();
  });
  player.addEventListener("seeked", show);
  for (const area of clip.querySelectorAll(".area")) area.addEventListener("click", (event) => {
    const box = area.getBoundingClientRect();
    const time = (event.clientX - box.left) / box.width * span;
    if (time < player.duration) { player.currentTime = time; player.play(); }
  });
}
for (const slider of document.querySelectorAll(".slider:not(.live)")) {
  slider.classList.add("live");
  const input = slider.querySelector("input"), output = slider.querySelector("output");
  const stops = [...slider.querySelectorAll(":scope > .stop")];
  const move = () => {
    const before = stops.find((stop) => !stop.hidden), now = stops[input.value];
    const old = [...before.querySelectorAll("audio")], place = old.findIndex((player) => !player.paused);
    for (const stop of stops) stop.hidden = stop !== now;
    input.ariaValueText = output.textContent = now.dataset.name;
    if (place < 0 || before === now) return;
    old[place].pause();
    const next = now.querySelectorAll("audio")[place];
    if (!next || old[place].currentTime >= next.duration) return;
    next.currentTime = old[place].currentTime;
    next.play().catch(() => {});  // paused before it began, by the next move
  };
  input.addEventListener("input", move);
  for (const stop of stops) stop.hidden = stop !== stops[input.value];
  move();
}
"""
