// The trees of a step: step bar, follow, small icicles. Lists come from the server; this only asks for another one.
import { byId, data, make, revealScripted, setText, typed } from "../core/dom.js";
import { onKeys } from "../core/keys.js";
import { load } from "../core/regions.js";
import { revealHidden } from "../core/text.js";
import { onTheme } from "../core/theme.js";
import { RunHead, showWords } from "../live/head.js";
import { Session } from "../live/session.js";
import { commonLimit, commonValues, drawMini } from "../tree/mini.js";
import { StepBar } from "../tree/step_bar.js";

const main = /** @type {RunState} */ (data("run-state"));
const head = new RunHead();
const session = new Session({ onWords: showWords, onChange: () => changed() }, { curves: false });

/** @type {import("../tree/step_bar.js").StepCell[]} */
let cells = [];
/** @type {StepBar | null} */
let bar = null;
/** The step that is on its way. @type {number | null} */
let waiting = null;

/** Called for the page, and again when the browser came after the first trees did. */
function start() {
  const browser = byId("tree-browser");
  revealScripted(browser);
  if (!document.getElementById("steps-data")) return;
  cells = data("steps-data");
  bar = new StepBar(typed("step-bar", HTMLCanvasElement), choose);
  byId("step-back").addEventListener("click", () => go(-1));
  byId("step-forward").addEventListener("click", () => go(1));
  typed("step-input", HTMLInputElement).addEventListener("change", (event) => choose(Number(/** @type {HTMLInputElement} */ (event.target).value)));
  typed("sort-input", HTMLSelectElement).addEventListener("change", () => showStep(current()));
  typed("step-form", HTMLFormElement).addEventListener("submit", (event) => {
    event.preventDefault();
    showStep(current());
  });
  const follow = typed("follow", HTMLInputElement);
  follow.checked = new URLSearchParams(location.search).get("step") === null && isActive();
  follow.addEventListener("change", () => {
    if (follow.checked) followNewest(true);
  });
  listed();
}

const current = () => Number(byId("tree-list").dataset.step);
const isActive = () => !["succeeded", "stopped", "failed", "cancelled"].includes(session.feeds.get(main.id)?.state?.status ?? main.status);

/** A new list is in place. */
function listed() {
  const list = byId("tree-list");
  revealScripted(list);
  revealHidden(list);
  typed("step-input", HTMLInputElement).value = list.dataset.step ?? "";
  bar?.show(cells, current(), session.feeds.get(main.id)?.state?.steps_total ?? main.steps_total);
  document.title = document.title.replace(/trees of step \S+/, `trees of step ${list.dataset.step}`);
  minis();
}

function minis() {
  if (!document.getElementById("trees-data")) return;
  const rows = /** @type {TreeRow[]} */ (data("trees-data"));
  const icicles = new Map(rows.flatMap((row) => (row.icicle ? [[row.id, row.icicle]] : [])));
  const limit = commonLimit([...icicles.values()]);
  const values = commonValues([...icicles.values()]);
  for (const canvas of /** @type {NodeListOf<HTMLCanvasElement>} */ (document.querySelectorAll("canvas[data-icicle]"))) {
    const icicle = icicles.get(Number(canvas.dataset.icicle));
    if (icicle) drawMini(canvas, icicle, limit, values);
    else canvas.hidden = true;
  }
}

/** The reader chose: following ends. @param {number} step */
function choose(step) {
  const last = cells.at(-1)?.step;
  typed("follow", HTMLInputElement).checked = false;
  if (Number.isInteger(step) && step >= 0 && last !== undefined) showStep(step);
}
/** @param {number} by */
function go(by) {
  const step = bar?.beside(by);
  if (step !== null && step !== undefined) choose(step);
}

/** @param {number} step @param {boolean} [following] then the address stays that of the newest step */
function showStep(step, following = false) {
  waiting = step;
  const sort = typed("sort-input", HTMLSelectElement).value;
  const query = `?step=${step}${sort === "index" ? "" : `&sort=${sort}`}`;
  void swap(location.pathname + query, "tree-list", () => {
    waiting = null;
    if (!following) history.pushState(null, "", query);
    listed();
  });
}

/** @param {string} path @param {string} region @param {() => void} done */
async function swap(path, region, done) {
  const banner = byId("trees-problem");
  try {
    if (!(await load(path, [region]))) return;
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    waiting = null;
    banner.hidden = false;
    setText(banner, `These trees could not be read. ${error.message}`);
    return;
  }
  banner.hidden = true;
  done();
}
window.addEventListener("popstate", () => location.reload());

function changed() {
  const feed = session.feeds.get(main.id);
  if (!feed) return;
  if (feed.state) head.show(feed.state);
  if (!feed.trees.size) return;
  const known = new Map(cells.map((cell) => [cell.step, cell]));
  for (const [step, { n, value }] of feed.trees) if (!known.has(step)) known.set(step, { step, n_trees: n, value_mean: value });
  cells = [...known.values()].sort((a, b) => a.step - b.step);
  if (bar) {
    bar.show(cells, current(), feed.state?.steps_total ?? main.steps_total);
    followNewest(false);
  } else if ((feed.state?.step ?? 0) > 0 && !starting) {
    starting = true;
    void swap(location.pathname, "tree-browser", start);
  }
}
let starting = false;

/** The newest step whose trees are all there. @param {boolean} now even under the pointer: the reader asked for it */
function followNewest(now) {
  if (!typed("follow", HTMLInputElement).checked) return;
  const done = session.feeds.get(main.id)?.state?.step ?? main.step;
  const newest = cells.filter(({ step }) => step <= done).at(-1)?.step;
  if (newest === undefined || newest === current() || newest === waiting) return;
  const list = byId("tree-list");
  // Nothing moves under the pointer or the focus.
  if (!now && (list.matches(":hover") || list.contains(document.activeElement))) offer(newest);
  else showStep(newest, true);
}

/** @param {number} step */
function offer(step) {
  const line = document.querySelector("#tree-list .list-head");
  if (!line) return;
  let button = line.querySelector("button");
  if (!button) {
    button = make("button", { type: "button", class: "quiet" });
    button.addEventListener("click", () => followNewest(true));
    line.append(" ", button);
  }
  setText(button, `step ${step} is there · show`);
}

onTheme(() => {
  minis();
  bar?.redraw();
});
new ResizeObserver(() => minis()).observe(byId("tree-browser"));

const links = () => /** @type {HTMLElement[]} */ ([...document.querySelectorAll("#tree-list .tree-link")]);
/** @param {number} by */
function focusRow(by) {
  const all = links();
  const at = all.indexOf(/** @type {HTMLElement} */ (document.activeElement));
  all[at === -1 ? 0 : Math.min(all.length - 1, Math.max(0, at + by))]?.focus();
}
onKeys({
  j: () => focusRow(1),
  k: () => focusRow(-1),
  "[": () => go(-1),
  "]": () => go(1),
  ".": () => session.togglePause(),
});

start();
void session.follow(main.id, main);
