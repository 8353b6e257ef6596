// One tree while it is sampled. When it is stored, its page takes the place of this one.
import { ApiError, json } from "../core/api.js";
import { announce } from "../core/announce.js";
import { byId, make, setText, typed } from "../core/dom.js";
import { onTheme } from "../core/theme.js";
import { growingWords } from "../tree/growing_layout.js";
import { paintGrowing } from "../tree/growing_paint.js";

const ASK_MS = 1000;
const ROW = 26;

const root = byId("growing-tree");
const canvas = typed("growing-canvas", HTMLCanvasElement);
/** @type {{tree: import("../tree/growing_layout.js").GrowingTree, branching: number[]} | null} */
let shown = null;
root.dataset.ready = "";

async function ask() {
  let isOver = false;
  try {
    if (!document.hidden) {
      const found = await json(`/runs/${root.dataset.run}/growing`);
      const isOurs = found.step === Number(root.dataset.step);
      const tree = isOurs ? found.trees.find((/** @type {{problem_id: string}} */ one) => one.problem_id === root.dataset.problem) : null;
      if (tree) {
        shown = { tree, branching: found.branching };
        draw();
      }
      isOver = !found.is_active || found.is_recorded || (found.step !== null && found.step > Number(root.dataset.step));
    }
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    setText(byId("growing-state"), error.message);
    byId("growing-state").hidden = false;
  }
  if (!isOver) setTimeout(ask, ASK_MS);
  else setTimeout(leave, shown ? 0 : 2 * ASK_MS);
}

/** The same address leads to the recorded tree, or says that there is none. Nothing moves under the pointer: then it is offered. */
function leave() {
  if (!canvas.matches(":hover")) return location.replace(location.href);
  byId("growing-words").append(" · ", make("a", { href: location.href, id: "growing-over" }, "This step is over: open the tree"));
  announce("This step is over.");
}

function draw() {
  if (!shown) return;
  const words = growingWords(shown.tree);
  setText(byId("growing-words"), words);
  canvas.setAttribute("aria-label", `Tree of this problem: ${words}`);
  paintGrowing(canvas, shown.tree, shown.branching, ROW);
}

onTheme(draw);
new ResizeObserver(draw).observe(/** @type {HTMLElement} */ (canvas.parentElement));
void ask();
