// Two trees side by side. A node that is selected in one is selected in the other, or the nearest one above it; rows of one
// depth lie at the same height. The texts below come from the server.
import { request } from "../core/api.js";
import { byId, revealScripted, setText, typed } from "../core/dom.js";
import { number } from "../core/format.js";
import { onKeys } from "../core/keys.js";
import { load } from "../core/regions.js";
import { revealHidden } from "../core/text.js";
import { onTheme, theme } from "../core/theme.js";
import { changed, read, write } from "../core/url_state.js";
import { announce } from "../core/announce.js";
import { ancestorNamed, linked } from "../problems/linked.js";
import { TreeCanvas } from "../tree/canvas.js";
import { decodeColumns } from "../tree/columns.js";
import { place, shapeOf } from "../tree/layout.js";
import { drawLegend } from "../tree/legend.js";
import { interceptNodeLinks } from "../tree/reader.js";
import { advantageWords, look, SIGNALS, signalOf, spoken, times, withoutCredit } from "../tree/signals.js";
import { countBelow, move, nameOf } from "../tree/walk.js";

const PUSH_AFTER_MILLISECONDS = 1500;
const TEXT_AFTER_MILLISECONDS = 120;

const root = byId("beside");
const sections = /** @type {HTMLElement[]} */ ([...root.querySelectorAll("[data-side]")]);

try {
  const sides = await Promise.all(sections.map(open));
  start(sides);
} catch (error) {
  if (!(error instanceof Error)) throw error;
  // Table and texts are the server's and stay as they are.
  for (const box of root.querySelectorAll(".beside-canvas")) /** @type {HTMLElement} */ (box).hidden = true;
  byId("beside-problem").hidden = false;
  setText(byId("beside-problem"), `The pictures of these trees cannot be drawn. ${error.message}`);
}

/** @param {HTMLElement} section */
async function open(section) {
  const canvas = section.querySelector("canvas");
  if (!canvas) throw new Error("One of the two cannot be read.");
  const columns = decodeColumns(await (await request(section.dataset.columns ?? "")).arrayBuffer());
  const tree = place(shapeOf(columns.n_children), { copies: columns.copies });
  const correct = countBelow(tree, columns.verdict, columns.labels.verdict.indexOf("correct"));
  return { element: canvas, columns, tree, correct, selected: 0, missing: false };
}

/** @param {Awaited<ReturnType<typeof open>>[]} sides */
function start(sides) {
  const choice = typed("colour-choice", HTMLSelectElement);
  let name = root.dataset.node ?? "0";
  let pushedAt = -Infinity;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let later;
  let signals = coloured();
  const canvases = sides.map((side, at) => {
    const hooks = { onSelect: (/** @type {number} */ node) => choose(nameOf(side.tree, node)), onHover: (/** @type {number} */ node) => hint(at, node), onZoom: () => {} };
    return new TreeCanvas(side.element, hooks);
  });

  /** One scale for both: the wider of the two. */
  function coloured() {
    const signal = SIGNALS.find((one) => one === choice.value) ?? "advantage";
    return linked(sides.map(({ columns, tree }) => signalOf({ columns, parent: tree.parent }, signal, theme(), { scale: "tree" })), theme());
  }

  function paint() {
    canvases.forEach((canvas, at) => {
      const { columns, tree } = /** @type {(typeof sides)[number]} */ (sides[at]);
      canvas.show({ columns, layout: tree, signal: /** @type {(typeof signals)[number]} */ (signals[at]), textOf: () => "", hits: null, cliff: columns.cliff?.node ?? -1 }, true);
    });
    legend();
  }

  function legend() {
    /** @type {Map<Look, string>} */
    const looks = new Map();
    sides.forEach(({ columns }, at) => {
      const signal = /** @type {(typeof signals)[number]} */ (signals[at]);
      for (let node = 1; node < columns.n; node++) {
        const kind = look(columns, signal, node);
        if (!looks.has(kind)) looks.set(kind, kind !== "hatched" ? withoutCredit(columns, node) : signal.signal === "advantage" ? "no credit" : "nothing scored");
      }
    });
    drawLegend(byId("colour-legend"), /** @type {(typeof signals)[number]} */ (signals[0]), NaN, looks);
    byId("colour-legend").title = "One scale for both trees.";
  }

  /** @param {string} next name of a node @param {boolean} [fromAddress] */
  function choose(next, fromAddress = false) {
    if (next === name && !fromAddress) return;
    name = next;
    if (!fromAddress) {
      const rested = performance.now() - pushedAt > PUSH_AFTER_MILLISECONDS;
      pushedAt = performance.now();
      write({ n: name === "0" ? null : name }, rested ? "push" : "replace");
    }
    mark();
    announce(sides.map((side, at) => `${at ? "Right" : "Left"}: ${side.missing ? "not there, " : ""}${inWords(side)}`).join(". "));
    clearTimeout(later);
    later = setTimeout(texts, TEXT_AFTER_MILLISECONDS);
  }

  function mark() {
    sides.forEach((side, at) => {
      const { node, found } = ancestorNamed(side.tree, name);
      side.selected = node;
      side.missing = !found;
      canvases[at]?.select(node);
      side.element.setAttribute("aria-description", inWords(side));
    });
    document.title = document.title.replace(/node \S+/, `node ${name}`);
    root.dataset.node = name;
    const depths = new Set(sides.map((side) => String(side.tree.depth[side.selected])));
    for (const row of /** @type {NodeListOf<HTMLElement>} */ (root.querySelectorAll("tr[data-depth]"))) row.toggleAttribute("data-here", depths.has(row.dataset.depth ?? ""));
    hint(-1, -1);
  }

  /** @param {(typeof sides)[number]} side @param {number} [node] */
  const inWords = ({ columns, tree, correct, selected }, node = selected) => spoken(columns, node, nameOf(tree, node), /** @type {number} */ (correct[node]), /** @type {number} */ (tree.leaves[node]));

  async function texts() {
    try {
      if (!(await load(location.pathname + changed(location.search, { n: name === "0" ? null : name }), ["beside-paths"]))) return;
      byId("beside-problem").hidden = true;
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      byId("beside-problem").hidden = false;
      setText(byId("beside-problem"), `The texts of node ${name} could not be read. ${error.message}`);
      return;
    }
    revealScripted(byId("beside-paths"));
    revealHidden(byId("beside-paths"));
  }

  /** What the pointer is on, and what is selected where it is on nothing. @param {number} on which side @param {number} node */
  function hint(on, node) {
    const words = sides.map((side, at) => {
      const { columns, tree, correct, missing } = side;
      const pointed = at === on && node >= 0;
      const one = pointed ? node : side.selected;
      const parts = [nameOf(tree, one), times(columns, one), `V ${number(columns.value[one], 3)}`, `${correct[one]}/${tree.leaves[one]} ✓`, one > 0 ? advantageWords(columns, one) : "", missing && !pointed ? `(no ${name} here)` : ""];
      return `${at ? "right" : "left"} ${parts.filter(Boolean).join("  ")}`;
    });
    setText(byId("beside-hint"), words.join("     "));
  }

  const recolour = () => {
    signals = coloured();
    paint();
    write({ color: choice.value === root.dataset.usualColour ? null : choice.value });
  };
  choice.addEventListener("change", recolour);
  onTheme(recolour);
  window.addEventListener("popstate", () => choose(read("n") ?? "0", true));
  interceptNodeLinks((next) => choose(next));
  // Rows of one depth stay at one height, however deep the trees are.
  const boxes = sides.map(({ element }) => /** @type {HTMLElement} */ (element.parentElement));
  boxes.forEach((box, at) => box.addEventListener("scroll", () => {
    const other = /** @type {HTMLElement} */ (boxes[1 - at]);
    other.scrollTop = box.scrollTop;
  }));
  sides.forEach((side, at) => {
    const go = (/** @type {Parameters<typeof move>[2]} */ direction) => choose(nameOf(side.tree, move(side.tree, side.selected, direction)));
    onKeys(
      {
        ArrowUp: () => go("up"),
        ArrowDown: () => go("down"),
        ArrowLeft: () => go("left"),
        ArrowRight: () => go("right"),
        Home: () => go("first"),
        End: () => go("last"),
        Enter: () => canvases[at]?.zoomTo(side.selected),
        Backspace: () => canvases[at]?.fit(),
        0: () => canvases[at]?.fit(),
      },
      side.element,
    );
  });
  onKeys({ v: () => {
    choice.selectedIndex = (choice.selectedIndex + 1) % choice.options.length;
    recolour();
  } });
  sides.forEach(({ columns, tree }, at) => canvases[at]?.show({ columns, layout: tree, signal: /** @type {(typeof signals)[number]} */ (signals[at]), textOf: () => "", hits: null, cliff: columns.cliff?.node ?? -1 }, false));
  legend();
  mark();
  root.dataset.ready = "";
}
