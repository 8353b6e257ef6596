// The trees of a run: step bar, follow, filter, order, small icicles. Lists come from the server; this only asks for
// another one. Every link and form of the list works without scripts; here they fetch the same pages and keep the rest.
import { json } from "../core/api.js";
import { byId, data, make, revealScripted, setText, typed } from "../core/dom.js";
import { hasEnded } from "../core/format.js";
import { onKeys } from "../core/keys.js";
import { load } from "../core/regions.js";
import { revealHidden } from "../core/text.js";
import { onTheme } from "../core/theme.js";
import { RunHead } from "../live/head.js";
import { Session } from "../live/session.js";
import { ListIcicles } from "../tree/list_icicles.js";
import { StepBar } from "../tree/step_bar.js";

const SHADES_SECONDS = 5; // at most so often the server is asked for new means

const main = /** @type {RunState} */ (data("run-state"));
const head = new RunHead();
const session = new Session({ onChange: () => changed() }, { curves: false });
const icicles = new ListIcicles(main.id);

/** @type {import("../tree/step_bar.js").StepCell[]} */
let cells = [];
/** @type {StepBar | null} */
let bar = null;
let starting = false;
/** The newest step that was shown or offered. */
let told = -1;

/** Called for the page, and again when the browser came after the first trees did. */
function start() {
  const browser = byId("tree-browser");
  revealScripted(browser);
  if (!document.getElementById("tree-list")) return;
  bar = new StepBar(typed("step-bar", HTMLCanvasElement), {
    onChoose: (step) => go({ step }),
    onRange: ({ first, last }) => go({ from: first, to: last }),
    onMove: move,
    onHint: (text) => setText(document.getElementById("step-bar-hint"), text),
  });
  const follow = typed("follow", HTMLInputElement);
  follow.checked = list().dataset.isNewest === "yes" && list().dataset.kind === "step" && isActive();
  follow.addEventListener("change", () => {
    if (follow.checked) go({});
  });
  browser.addEventListener("click", onClick);
  browser.addEventListener("submit", onSubmit);
  browser.addEventListener("change", (event) => {
    if (event.target instanceof HTMLInputElement && event.target.id === "step-input") event.target.form?.requestSubmit();
  });
  // The × of a search field takes the whole filter away.
  browser.addEventListener("search", (event) => {
    if (event.target instanceof HTMLInputElement && event.target.value === "" && current().has("q")) event.target.form?.requestSubmit();
  });
  listed();
}

const list = () => byId("tree-list");
const current = () => new URLSearchParams(location.search);
const shown = () => Number(list().dataset.step);
const state = () => session.feeds.get(main.id)?.state ?? main;
const isActive = () => !hasEnded(state().status);
const isFollowing = () => typed("follow", HTMLInputElement).checked;

/** A new list is in place. */
function listed() {
  const region = list();
  const browser = byId("tree-browser");
  revealScripted(browser);
  revealHidden(browser);
  cells = data("steps-data");
  told = Math.max(told, cells.at(-1)?.step ?? -1);
  typed("follow", HTMLInputElement).checked &&= region.dataset.isNewest === "yes" && region.dataset.kind === "step";
  document.title = document.title.replace(/· trees.* · Arborist$/, () => `· trees ${region.dataset.title} · Arborist`);
  showBar();
  void icicles.show(problem);
}

function showBar() {
  const { kind, first, last, shade, shadeTitle } = list().dataset;
  const [low, high] = [cells[0]?.step ?? 0, cells.at(-1)?.step ?? 0];
  const range = kind === "all" ? { first: low, last: high } : kind === "range" ? { first: Number(first || low), last: Number(last || high) } : null;
  bar?.show({ cells, current: shown(), range, total: state().steps_total, shade: { sort: shade ?? "value", title: shadeTitle ?? "V" } });
  setText(document.getElementById("step-bar-shade"), bar?.words() ?? "");
}

/** Other steps, the same order and filter. Nothing: the newest step. @param {{step?: number, from?: number, to?: number}} steps */
function go(steps) {
  const query = current();
  for (const name of ["step", "from", "to", "scope", "after"]) query.delete(name);
  for (const [name, value] of Object.entries(steps)) query.set(name, String(value));
  show(`?${query}`);
}

/** To the step beside. @param {-1 | 1} by */
function move(by) {
  const { before, beyond, kind } = list().dataset;
  if (kind !== "step") return go({ step: shown() });
  const address = by < 0 ? before : beyond;
  if (address) show(address);
}

/** @param {MouseEvent} event */
function onClick(event) {
  if (event.defaultPrevented || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  const link = event.target instanceof Element ? event.target.closest("a[data-list-link]") : null;
  if (!(link instanceof HTMLAnchorElement)) return;
  event.preventDefault();
  show(new URL(link.href).search, link.id === "next-page");
}

/** @param {SubmitEvent} event */
function onSubmit(event) {
  const form = event.target;
  if (!(form instanceof HTMLFormElement) || !form.matches("[data-list-form]")) return;
  event.preventDefault();
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value !== "") query.set(name, String(value).trim());
  show(`?${query}`);
}

/** @param {string} search @param {boolean} [toTop] */
function show(search, toTop = false) {
  void swap(search, ["tree-list", "tree-scope", "tree-ask"], () => {
    const same = location.pathname + (search === "?" ? "" : search);
    if (same !== location.pathname + location.search) history.pushState(null, "", same);
    listed();
    if (toTop) list().scrollIntoView({ block: "start" });
  });
}

/** @param {string} search @param {string[]} regions @param {() => void} done */
async function swap(search, regions, done) {
  // A filter that cannot be read says so where it was typed, and takes away nothing that is there.
  let isUnread = false;
  const instead = (/** @type {Document} */ page) => {
    isUnread = page.getElementById("filter-error") !== null && regions[0] === "tree-list";
    return isUnread ? ["tree-ask"] : null;
  };
  try {
    if (!(await load(location.pathname + search, regions, { refused: true, instead }))) return;
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    problem(`These trees could not be read. ${error.message}`);
    return;
  }
  byId("trees-problem").hidden = true;
  if (!isUnread) return done();
  byId("filter-error").append(make("p", {}, "The trees below are as before."));
  revealScripted(byId("tree-ask"));
}

/** @param {string} message */
function problem(message) {
  const banner = byId("trees-problem");
  banner.hidden = false;
  setText(banner, message);
}
window.addEventListener("popstate", () => void swap(location.search || "?", ["tree-list", "tree-scope", "tree-ask"], listed));

// ---------------------------------------------------------------------------------------------------- live

function changed() {
  const feed = session.feeds.get(main.id);
  if (!feed) return;
  if (feed.state) head.show(feed.state);
  if (!feed.trees.size) return;
  if (!bar) {
    if ((feed.state?.step ?? 0) > 0 && !starting) {
      starting = true;
      void swap(location.search, ["tree-browser"], start);
    }
    return;
  }
  const known = new Map(cells.map((cell) => [cell.step, cell]));
  const shade = list().dataset.shade;
  for (const [step, { n, value }] of feed.trees) if (!known.has(step)) known.set(step, { step, n_trees: n, mean: shade === "value" ? value : null });
  if (known.size !== cells.length) {
    cells = [...known.values()].sort((a, b) => a.step - b.step);
    showBar();
    if (shade !== "value") void readShades();
  }
  tellNewest();
}

let shadesAt = -Infinity;
/** The means of another signal than the value are the server's. */
async function readShades() {
  if (performance.now() - shadesAt < 1000 * SHADES_SECONDS) return;
  shadesAt = performance.now();
  const shade = list().dataset.shade;
  try {
    const read = await json(`/runs/${main.id}/steps?sort=${shade}`);
    if (shade !== list().dataset.shade) return;
    cells = read;
    showBar();
  } catch (error) {
    if (!(error instanceof Error)) throw error; // the next step asks again
  }
}

/** The newest step whose trees are all there: shown where that was asked for, offered where it would disturb. */
function tellNewest() {
  const done = state().step;
  const newest = cells.filter(({ step }) => step <= done).at(-1)?.step;
  if (newest === undefined || newest <= told) return;
  const region = list();
  const { kind } = region.dataset;
  if (kind === "step" && !isFollowing()) return;
  // Nothing moves under the pointer or the focus; lists of several steps never change by themselves.
  if (kind !== "step" || region.matches(":hover") || region.contains(document.activeElement)) offer(newest);
  else {
    told = newest;
    follow();
  }
}

function follow() {
  // The filter box stays: somebody may be typing in it.
  void swap(location.search || "?", ["tree-list", "tree-scope"], listed);
}

/** @param {number} step */
function offer(step) {
  const line = document.querySelector("#tree-list .list-head");
  if (!line) return;
  let button = line.querySelector("button");
  if (!button) {
    button = make("button", { type: "button", class: "quiet" });
    button.addEventListener("click", () => {
      told = step;
      follow();
    });
    line.append(button);
  }
  setText(button, list().dataset.kind === "step" ? `step ${step} is there · show` : `step ${step} is there · read again`);
}

onTheme(() => {
  icicles.draw();
  bar?.redraw();
});
let width = 0;
new ResizeObserver(([entry]) => {
  if (!entry || entry.contentRect.width === width) return;
  width = entry.contentRect.width;
  icicles.draw();
}).observe(byId("tree-browser"));

// Who came by keyboard goes on by keyboard.
document.addEventListener("click", (event) => {
  if (event.detail === 0 && /** @type {Element} */ (event.target).closest(".tree-link")) sessionStorage.setItem("focus-picture", "1");
});

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
  "[": () => move(-1),
  "]": () => move(1),
});

start();
void session.follow(main.id, main);
