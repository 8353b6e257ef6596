// The first trees of the step that a run samples just now, asked for again and again. They are hints: late, or lost, is no harm.
import { ApiError, json } from "../core/api.js";
import { byId, make, setText } from "../core/dom.js";
import { number } from "../core/format.js";
import { revealHidden } from "../core/text.js";
import { onTheme } from "../core/theme.js";
import { growingWords } from "../tree/growing_layout.js";
import { paintGrowing } from "../tree/growing_paint.js";

const ASK_MS = 1000;
const REST_MS = 5000; // after an error, or while nothing is sampled
const ROW = 14;

/** @typedef {import("../tree/growing_layout.js").GrowingTree} GrowingTree */
/** @typedef {{is_active: boolean, phase: string, done: number, total: number, step: number | null, is_recorded: boolean, branching: number[], trees: GrowingTree[]}} Growing */

const section = byId("growing");
const list = byId("growing-list");
/** @type {Growing | null} */
let shown = null;

async function ask() {
  let wait = REST_MS;
  try {
    if (!document.hidden) {
      const found = /** @type {Growing} */ (await json(`/runs/${section.dataset.run}/growing`));
      show(found);
      if (!found.is_active) return;
      if (found.phase === "sampling") wait = ASK_MS;
      else wait = 2 * ASK_MS;
    }
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401 || error.status === 404) return;
  }
  setTimeout(ask, wait);
}

/** @param {Growing} found */
function show(found) {
  shown = found;
  section.hidden = !found.is_active || found.step === null;
  if (section.hidden) return;
  const where = found.phase === "sampling" && !found.is_recorded ? `sampling ${number(found.done, 0)} of ${number(found.total, 0)} segments` : found.is_recorded ? "recorded, see the list" : "sampled";
  setText(byId("growing-title"), `Step ${number(found.step, 0)} as it grows: ${where}`);
  const rows = /** @type {HTMLElement[]} */ ([...list.children]);
  found.trees.forEach((tree, place) => {
    let row = rows[place];
    if (!row) {
      row = make("li", {}, make("canvas", { role: "img" }), make("a", { class: "mono", "data-model-text": "" }), make("span", { class: "secondary figures" }));
      list.append(row);
    }
    const [canvas, name, words] = /** @type {[HTMLCanvasElement, HTMLElement, HTMLElement]} */ (/** @type {unknown} */ ([...row.children]));
    if (name.dataset.problem !== tree.problem_id) {
      name.dataset.problem = tree.problem_id;
      name.textContent = tree.problem_id;
      revealHidden(row);
    }
    /** @type {HTMLAnchorElement} */ (name).href = `/r/${section.dataset.run}/growing?${new URLSearchParams({ step: String(found.step), problem: tree.problem_id })}`;
    setText(words, growingWords(tree));
    canvas.setAttribute("aria-label", `Tree of this problem: ${growingWords(tree)}`);
    paintGrowing(canvas, tree, found.branching, ROW);
  });
  for (const row of rows.slice(found.trees.length)) row.remove();
}

const again = () => shown && show(shown);
onTheme(again);
new ResizeObserver(again).observe(list);
document.addEventListener("visibilitychange", () => document.hidden || again());
void ask();
