// One problem over training: the player moves one step through curves, trees and answers at once. Every number is on the
// page already; this only draws, and moves. While a run is not over, the page looks for newer trees: they come by
// themselves while somebody watches the last step, and are offered while something else is being looked at.
import { PanelView } from "../charts/panel.js";
import { stylesOf } from "../charts/styles.js";
import { json } from "../core/api.js";
import { byId, data, make, revealScripted, setText, typed } from "../core/dom.js";
import { number, percent } from "../core/format.js";
import { onKeys } from "../core/keys.js";
import { load } from "../core/regions.js";
import { revealHidden } from "../core/text.js";
import { colour, onTheme, theme } from "../core/theme.js";
import { read, write } from "../core/url_state.js";
import { announce } from "../core/announce.js";
import { atOrBefore, lineOfPoints, nearestPlace, stacked, tones } from "../problems/film.js";
import { newer } from "../problems/newer.js";
import { colourScale } from "../tree/colour.js";
import { commonLimit, commonValues, drawMini } from "../tree/mini.js";
import { hatch, sized } from "../tree/paint.js";

/** @typedef {import("../problems/film.js").FilmRun} FilmRun */

const FRAMES_PER_SECOND = 2;
const FRAME = 44;
const STAGE = 132;
const BANDS = 84;
const LINE = 2;
const still = matchMedia("(prefers-reduced-motion: reduce)");

const LOOK_SECONDS = 4;

/** @typedef {{slug: string, problem: string, is_chosen: boolean, known: Record<string, number>, runs: FilmRun[], steps: number[]}} History */
/** @typedef {{move: (by: number) => void, stop: () => void, toggle: () => void, draw: () => void, redraw: () => void, follows: () => boolean, ticked: () => void, leave: () => void}} Shown */

/** @type {Shown | null} */
let shown = document.getElementById("history-data") ? start() : null;
if (shown) {
  onKeys({ "[": () => (shown?.stop(), shown?.move(-1)), "]": () => (shown?.stop(), shown?.move(1)) });
  document.addEventListener("keydown", (event) => {
    // The space bar belongs to whatever can be pressed.
    if (event.key !== " " || event.ctrlKey || event.metaKey || event.altKey || still.matches) return;
    if (/** @type {Element} */ (event.target).closest("a, button, input:not([type=range]), select, textarea, summary, [contenteditable]")) return;
    event.preventDefault();
    shown?.toggle();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) shown?.stop();
  });
  // Back: the browser restores ticks after this ran.
  window.addEventListener("pageshow", () => shown?.ticked());
  onTheme(() => shown?.redraw());
  later();
}

function later() {
  if ("growing" in byId("problem-history").dataset) setTimeout(() => void look(), 1000 * LOOK_SECONDS);
}

async function look() {
  if (document.hidden || !shown) return later();
  const { slug, problem, is_chosen, known } = /** @type {History} */ (data("history-data"));
  try {
    const { runs } = await json(`/projects/${slug}/problem/runs?problem_id=${encodeURIComponent(problem)}`);
    const { count, isGrowing } = newer(runs, known, is_chosen);
    if (count && shown.follows()) await renew();
    else if (count) offer(count);
    else if (isGrowing) setText(byId("newer"), "A run is not over yet; newer trees appear here.");
    else if (shown.follows()) await renew();
    else setText(byId("newer"), "All its trees are here.");
  } catch (error) {
    setText(byId("newer"), `What is shown may be old. ${/** @type {Error} */ (error).message}`);
  }
  later();
}

/** @param {number} count */
function offer(count) {
  const button = make("button", { type: "button", class: "quiet", id: "show-newer" }, `Show ${count} newer tree${count === 1 ? "" : "s"}`);
  button.addEventListener("click", () => void renew().then(() => byId("step-slider").focus()));
  if (document.getElementById("show-newer")?.textContent !== button.textContent) byId("newer").replaceChildren(button);
}

/** The page as it is now. A step that was chosen stays chosen, since it stands in the address. */
async function renew() {
  if (!(await load(location.pathname + location.search, ["problem-history"]))) return;
  shown?.leave();
  revealScripted(byId("problem-history"));
  revealHidden(byId("problem-history"));
  shown = start();
}

/** @returns {Shown | null} null: no tree has a picture or answer to draw */
function start() {
  const { runs: every, steps } = /** @type {History} */ (data("history-data"));
  const runs = every.filter((run) => run.frames.length);
  /** @type {(number | null)[][]} */
  const openingShares = document.getElementById("opening-data") ? data("opening-data") : [];
  if (!runs.length) return null;
  const slider = typed("step-slider", HTMLInputElement);
  const play = typed("play", HTMLButtonElement);
  const icicles = runs.flatMap((run) => run.frames.flatMap((frame) => frame.icicle ?? []));
  const limit = commonLimit(icicles);
  const values = commonValues(icicles);
  const named = read("at");
  let place = named === null ? steps.length - 1 : nearestPlace(steps, Number(named) || 0);
  /** @type {ReturnType<typeof setInterval> | undefined} */
  let timer;

  // ---- what stands there

  const stages = runs.map((run) => {
    const canvas = make("canvas", { class: "stage-icicle", "aria-hidden": "true" });
    const link = make("a", { class: "stage-link" });
    const facts = make("p", { class: "stage-facts figures" });
    byId("stage").append(make("div", { class: "stage-run" }, make("p", { class: "stage-head" }, make("span", { class: `dot c${run.colour}`, "aria-hidden": "true" }), make("span", { "data-model-text": "" }, run.name)), canvas, facts, make("p", {}, link)));
    return { run, canvas, link, facts };
  });
  revealHidden(byId("stage"));
  const looks = stylesOf(runs);
  const panels = /** @type {const} */ ([
    ["value", "Value of the root", "The value that the run's estimator gave the prompt: the mean over the trees of a step."],
    ["solved", "Solved", "Correct answers of all answers of the step's trees."],
  ]).map(([name, title, formula]) => {
    const panel = { title, section: "", pinned: true, unit: "", metrics: [name], titles: { [name]: title }, formulas: { [name]: formula }, bands: {} };
    const view = new PanelView(panel, { onWindow: () => {}, onAnnounce: announce });
    byId("history-curves").append(view.element);
    return { name, view };
  });
  const byRun = new Map(runs.map(({ id, name }) => [id, { id, name }]));
  const ends = /** @type {[number, number]} */ ([steps[0] ?? 0, Math.max(steps.at(-1) ?? 1, (steps[0] ?? 0) + 1)]);

  // The last tree's column is as wide as the mean one.
  const bandsEnd = Number(steps.at(-1)) + Math.max(1, Math.round((Number(steps.at(-1)) - ends[0]) / Math.max(steps.length - 1, 1)));

  /** @param {boolean} afresh */
  function curves(afresh) {
    const marks = runs.flatMap((run) => run.turns.map(({ step }) => ({ x: step, kind: "turn" })));
    for (const { name, view } of panels) {
      const lines = runs.flatMap((run) => lineOfPoints(run, name) ?? []);
      const styles = lines.map((line) => {
        const style = looks.get(line.run) ?? { slot: 1, dash: [] };
        return { ...style, sparse: line.raw.length < 60 };
      });
      view.rest = /** @type {number} */ (steps[place]);
      view.draw({ lines, looks: styles, window: ends, marks: [...marks, { x: /** @type {number} */ (steps[place]), kind: "now" }] }, byRun, afresh);
    }
  }

  function film() {
    for (const run of runs) {
      for (const frame of run.frames) {
        const canvas = document.querySelector(`canvas[data-frame="${frame.id}"]`);
        if (!(canvas instanceof HTMLCanvasElement)) continue;
        if (frame.icicle) drawMini(canvas, frame.icicle, limit, values, FRAME);
        else canvas.classList.add("no-picture");
      }
    }
  }

  // ---- bands and shares

  /** @param {HTMLCanvasElement} canvas @param {number} height */
  const pen = (canvas, height) => (canvas.clientWidth ? { ...sized(canvas, canvas.clientWidth, height), width: canvas.clientWidth } : null);

  /** @param {FilmRun} run @param {CanvasRenderingContext2D} ctx @param {number} dpr @returns {(string | CanvasPattern)[]} */
  function fills(run, ctx, dpr) {
    const scale = colourScale("advantage", 1, theme());
    return tones(run.bands).map((tone, band) => {
      if (tone !== null) return scale.fill(scale.level(tone));
      const verdict = run.bands[band]?.verdict;
      return verdict === "unparsed" ? hatch(ctx, dpr) : verdict === "error" ? colour("--bad") : colour(verdict === "others" ? "--line" : "--line-control");
    });
  }

  function answers() {
    for (const run of runs) {
      const canvas = document.querySelector(`canvas[data-bands="${run.id}"]`);
      if (!(canvas instanceof HTMLCanvasElement)) continue;
      const made = pen(canvas, BANDS);
      if (!made) continue;
      const { ctx, dpr, width } = made;
      const colours = fills(run, ctx, dpr);
      for (const { band, left, right, top, bottom } of stacked(run.bands, run.band_steps, ends[0], bandsEnd)) {
        ctx.fillStyle = colours[band] ?? colour("--line");
        // A hairline of the ground between bands, so that two tones of one colour can be told apart.
        ctx.fillRect(left * width, top * BANDS, Math.max((right - left) * width, 1), Math.max((bottom - top) * BANDS - 1, 0.5));
      }
      const x = ((/** @type {number} */ (steps[place]) - ends[0]) / (bandsEnd - ends[0])) * width;
      ctx.fillStyle = colour("--text-1");
      ctx.fillRect(Math.min(x, width - LINE), 0, LINE, BANDS);
      const at = atOrBefore(run.band_steps, /** @type {number} */ (steps[place]));
      const whole = run.bands.reduce((sum, band) => sum + (band.counts[at] ?? 0), 0);
      for (const row of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(`.bands[data-run="${run.id}"] tr[data-band]`))) {
        const band = Number(row.dataset.band);
        const swatch = row.querySelector("canvas");
        if (swatch) {
          const small = sized(swatch, 12, 12);
          small.ctx.fillStyle = fills(run, small.ctx, small.dpr)[band] ?? colour("--line");
          small.ctx.fillRect(0, 0, 12, 12);
        }
        setText(row.querySelector(".band-now"), at < 0 || !whole ? "—" : percent((run.bands[band]?.counts[at] ?? 0) / whole));
      }
    }
  }
  function shares() {
    const scale = colourScale("entropy", 1, theme());
    for (const canvas of /** @type {NodeListOf<HTMLCanvasElement>} */ (document.querySelectorAll("canvas[data-opening]"))) {
      const made = pen(canvas, 16);
      const cells = openingShares[Number(canvas.dataset.opening)] ?? [];
      if (!made) continue;
      const width = made.width / Math.max(cells.length, 1);
      cells.forEach((share, at) => {
        made.ctx.fillStyle = share === null ? colour("--sunken") : scale.fill(scale.level(share));
        made.ctx.fillRect(at * width, 0, Math.max(width - (width > 4 ? 1 : 0), 0.5), 16);
      });
    }
  }

  // ---- the step

  /** @param {boolean} [say] */
  function show(say = true) {
    const step = /** @type {number} */ (steps[place]);
    slider.value = String(place);
    slider.setAttribute("aria-valuetext", `Step ${step}`);
    setText(byId("step-now"), `step ${number(step, 0)}`);
    for (const { run, canvas, link, facts } of stages) {
      const at = atOrBefore(run.frames.map((frame) => frame.step), step);
      const frame = run.frames[at];
      for (const element of document.querySelectorAll(`.film[data-run="${run.id}"] .frame`)) element.classList.toggle("frame-now", element === element.parentElement?.children[at]);
      canvas.hidden = !frame?.icicle;
      link.hidden = !frame;
      if (!frame) {
        setText(facts, "no tree yet");
        continue;
      }
      if (frame.icicle) drawMini(canvas, frame.icicle, limit, values, STAGE);
      const turn = run.turns.find((one) => one.step === frame.step);
      setText(facts, [`step ${frame.step}`, `V ${number(frame.value, 2)}`, `${frame.n_correct}/${frame.answers} ✓`, !frame.icicle ? "no picture: too large, or damaged" : frame.icicle.rows_left_out ? `top rows; ${frame.icicle.rows_left_out} more below` : "", turn?.words ?? ""].filter(Boolean).join("   "));
      link.href = frame.url;
      setText(link, "Open this tree");
      bring(document.querySelector(`.frame[data-tree="${frame.id}"]`));
    }
    curves(false);
    answers();
    write({ at: place === steps.length - 1 ? null : String(step) });
    if (say) announce(`Step ${step}`);
  }

  /** Sideways only: the page itself never moves. @param {Element | null} frame */
  function bring(frame) {
    const list = frame?.parentElement;
    if (!(frame instanceof HTMLElement) || !list) return;
    const [left, right] = [frame.offsetLeft - list.offsetLeft, frame.offsetLeft - list.offsetLeft + frame.offsetWidth];
    if (left < list.scrollLeft) list.scrollLeft = left - frame.offsetWidth;
    else if (right > list.scrollLeft + list.clientWidth) list.scrollLeft = right - list.clientWidth + frame.offsetWidth;
  }

  /** @param {number} by */
  function move(by) {
    const next = Math.min(steps.length - 1, Math.max(0, place + by));
    if (next === place) return;
    place = next;
    show();
  }

  function stop() {
    clearInterval(timer);
    timer = undefined;
    setText(play, "Play");
    play.setAttribute("aria-pressed", "false");
  }

  function toggle() {
    if (still.matches) return;
    if (timer !== undefined) return stop();
    if (place === steps.length - 1) {
      place = 0;
      show();
    }
    setText(play, "Pause");
    play.setAttribute("aria-pressed", "true");
    timer = setInterval(() => {
      move(1);
      if (place === steps.length - 1) stop();
    }, 1000 / FRAMES_PER_SECOND);
  }

  function motion() {
    if (still.matches) stop();
    play.disabled = still.matches;
    play.title = still.matches ? "Your system asks for less motion; the keys [ and ] go step by step." : "";
  }
  const left = new AbortController();
  still.addEventListener("change", motion, { signal: left.signal });
  motion();

  for (const element of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".player"))) element.hidden = steps.length < 2;

  slider.addEventListener("input", () => {
    stop();
    place = Number(slider.value);
    show();
  });
  play.addEventListener("click", toggle);
  byId("step-back").addEventListener("click", () => (stop(), move(-1)));
  byId("step-forward").addEventListener("click", () => (stop(), move(1)));

  // ---- two frames

  const boxes = /** @type {NodeListOf<HTMLInputElement>} */ (document.querySelectorAll("#film-form input[name=tree]"));
  const open = typed("open-beside", HTMLButtonElement);
  function ticked() {
    const n = [...boxes].filter((box) => box.checked).length;
    open.disabled = n !== 2;
    for (const box of boxes) box.disabled = n >= 2 && !box.checked;
    setText(byId("chosen-count"), n === 0 ? "Tick two to see them side by side." : n === 1 ? "One is ticked; tick another." : "Two are ticked.");
  }
  byId("film-form").addEventListener("change", ticked);
  ticked();

  function draw() {
    film();
    show(false);
    shares();
    for (const { view } of panels) view.resize();
  }
  function redraw() {
    draw();
    curves(true);
  }
  let width = 0;
  const watcher = new ResizeObserver(([entry]) => {
    if (!entry || entry.contentRect.width === width) return;
    width = entry.contentRect.width;
    draw();
  });
  watcher.observe(byId("problem-history"));
  byId("problem-history").dataset.ready = "";

  /** Whether the newest step is being watched, and nothing else: then a newer one may take its place. */
  function follows() {
    const focused = document.activeElement;
    const isBusy = focused instanceof Element && focused !== document.body && focused.closest("#film-form, .answers, .openings, .range-form, #newer, details") !== null;
    const isPointed = document.querySelector("#film-form:hover, .answers:hover, .openings:hover, .problem-head:hover") !== null;
    return place === steps.length - 1 && timer === undefined && !isBusy && !isPointed && ![...boxes].some((box) => box.checked);
  }
  function leave() {
    stop();
    left.abort();
    watcher.disconnect();
    for (const { view } of panels) view.leave();
  }
  return { move, stop, toggle, draw, redraw, follows, ticked, leave };
}
