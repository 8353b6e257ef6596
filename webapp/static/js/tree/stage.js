// The middle of a tree's page: one tree in three views, the choices above them, and the keys that walk in it.
import { byId, setText, typed } from "../core/dom.js";
import { number } from "../core/format.js";
import { read, write } from "../core/url_state.js";
import { TreeCanvas } from "./canvas.js";
import { place, WIDTHS } from "./layout.js";
import { Legend } from "./legend.js";
import { note } from "./note.js";
import { Outline } from "./outline.js";
import { advantageWords, label, look, probeWords, SIGNAL_WORDS, signalsOf, times, visitWords, withoutCredit } from "./signals.js";
import { move, nameOf, nextAlike, nodeNamed } from "./walk.js";

const VIEWS = /** @type {const} */ (["icicle", "graph", "outline"]);

/** @param {TreePage} page */
export function mountStage(page) {
  const { root, columns, selection, colouring, shortcuts, correct, answers, textOf, inWords, probed } = page;
  const shape = page.layout;
  const cliff = columns.cliff?.node ?? -1;
  let view = VIEWS.find((name) => name === root.dataset.view) ?? "icicle";
  /** @type {Width} */
  let width = WIDTHS.find((name) => name === read("width")) ?? "leaves";
  let order = read("order") === "value" ? "value" : "sampling";
  let drawn = arranged();
  let zoomName = read("zoom");
  let isFollowing = false;
  let hasLane = false;
  /** @type {import("./found.js").Found | null} */
  let hits = null;
  /** Whether each look stands in the tree, with its word. @type {Map<Look, string>} */
  let looks = new Map();
  /** @type {import("./graph.js").TreeGraph | null} */
  let graph = null;

  const scene = () => ({ columns, layout: drawn, signal: colouring.signal, textOf, hits, cliff, probed, continuation: page.continuation });
  const choose = (/** @type {number} */ node) => selection.choose(node);
  const icicle = typed("icicle", HTMLCanvasElement);
  const canvas = new TreeCanvas(icicle, { onSelect: choose, onHover: hint, onZoom: zoomed, onProbe });
  const outline = new Outline({ ...scene(), layout: shape }, correct, answers, { onSelect: choose });
  const legend = new Legend(byId("colour-legend"), colouring);
  const picture = () => (view === "graph" && graph ? graph : canvas);

  byId("outline-box").replaceChildren(outline.head, outline.element);
  choice("width-choice", width, (next) => arrange(/** @type {Width} */ (next), order));
  choice("order-choice", order, (next) => arrange(width, next));
  const colourChoice = choice("colour-choice", colouring.signal.signal, (next) => colouring.by(/** @type {Signal} */ (next)));
  const scaleChoice = choice("scale-choice", colouring.scale, (next) => colouring.scaleBy(/** @type {ScaleChoice} */ (next)));
  const estimatorChoice = typed("estimator-choice", HTMLSelectElement);
  estimatorChoice.value = colouring.estimator;
  estimatorChoice.addEventListener("change", () => void colouring.under(estimatorChoice.value));

  repaint(false);
  show(view, "replace");
  const zoomRoot = nodeNamed(shape, read("zoom") ?? "0");
  if (zoomRoot > 0) canvas.zoomTo(zoomRoot, true);
  mark();
  selection.subscribe(mark);
  colouring.subscribe(() => {
    colourChoice.value = colouring.signal.signal;
    estimatorChoice.value = colouring.estimator;
    repaint(true);
    mark();
  });
  window.addEventListener("popstate", follow);
  root.addEventListener("probed", () => {
    hangLane();
    canvas.show(scene(), true);
    graph?.show(scene());
    outline.show({ ...scene(), layout: shape });
    describe();
  });
  hangLane();
  page.texts.subscribe(() => {
    canvas.redraw();
    graph?.redraw();
    outline.show({ ...scene(), layout: shape });
    hint(-1);
  });

  /** What is drawn of probes comes with the first of them. */
  function hangLane() {
    if (!probed.size || hasLane) return;
    hasLane = true;
    import("./probe_lane.js").then(({ ProbeLane }) => canvas.hang(new ProbeLane()), () => note("The lane of probes could not be loaded. They are listed below the picture."));
  }

  /** @param {number} node @param {string} id of a continuation; "": none of them */
  function onProbe(node, id) {
    choose(node);
    root.dispatchEvent(new CustomEvent("probe-chosen", { detail: id }));
  }

  function arranged() {
    const isPerPath = columns.labels.credit_state.indexOf("per_path");
    const made = place(shape, {
      width, copies: columns.copies, tokens: columns.tokens, advantage: columns.advantage,
      isPerPath: (node) => columns.credit_state[node] === isPerPath, by: order === "value" ? columns.value : null,
    }, shape);
    if (made.total > 0) return width === "leaves" && order === "sampling" ? shape : made;
    note("No node of this tree has weight in the loss, so widths are leaves.");
    width = "leaves";
    typed("width-choice", HTMLSelectElement).value = width;
    return order === "value" ? place(shape, { copies: columns.copies, by: columns.value }, shape) : shape;
  }

  /** @param {Width} nextWidth @param {string} nextOrder */
  function arrange(nextWidth, nextOrder) {
    width = nextWidth;
    order = nextOrder;
    drawn = arranged();
    if (!isFollowing) write({ width: width === "leaves" ? null : width, order: order === "sampling" ? null : order }, "push");
    const zoom = nodeNamed(shape, read("zoom") ?? "0");
    repaint(false);
    findAgain();
    if (zoom > 0) canvas.zoomTo(zoom, true);
    mark();
  }

  /** @param {boolean} keepView */
  function repaint(keepView) {
    canvas.show(scene(), keepView);
    graph?.show(scene());
    outline.show({ ...scene(), layout: shape });
    looks = looksOf();
    byId("scale-tool").hidden = colouring.signal.signal !== "advantage";
    byId("estimator-tool").hidden = colouring.signal.signal !== "difference";
    scaleChoice.value = colouring.scale;
    legend.show(looks, /** @type {number} */ (colouring.signal.values[selection.node]));
  }

  function mark() {
    const selected = selection.node;
    canvas.select(selected);
    graph?.select(selected);
    outline.select(selected);
    legend.mark(/** @type {number} */ (colouring.signal.values[selected]));
    describe();
  }

  function describe() {
    for (const element of [icicle, byId("graph")]) element.setAttribute("aria-description", inWords(selection.node));
    hint(-1);
  }

  /** How the nodes without a number are drawn, in a word each; the prompt needs no legend. */
  function looksOf() {
    const signal = colouring.signal;
    /** @type {Map<Look, string>} */
    const found = new Map();
    if (signal.signal === "none") return found;
    for (let node = 1; node < columns.n; node++) {
      const kind = look(columns, signal, node);
      if (!found.has(kind)) found.set(kind, kind !== "hatched" ? withoutCredit(columns, node) : signal.signal === "advantage" || signal.signal === "difference" ? "no credit" : signal.signal === "value" ? "nothing scored" : "none");
      if (found.size === 4) break;
    }
    return found;
  }

  /** What the pointer is on; the selected node when it is on nothing. @param {number} node */
  function hint(node) {
    const at = node < 0 ? selection.node : node;
    const { signal, values } = colouring.signal;
    const words = [nameOf(shape, at), times(columns, at), `V ${number(columns.value[at], 3)}`, `${correct[at]}/${answers[at]} ✓`];
    if (at > 0) words.push(advantageWords(columns, at));
    words.push(`${columns.tokens[at]} tok`, visitWords(columns, at), probeWords(probed.get(at)?.length));
    if (!["advantage", "value", "verdict", "tokens", "none"].includes(signal)) words.push(`${SIGNAL_WORDS[signal]} ${label(signal, /** @type {number} */ (values[at])) || "—"}`);
    words.push(textOf(at));
    setText(byId("icicle-hint"), words.filter(Boolean).join("   "));
  }

  // ---- views

  /** @param {typeof VIEWS[number]} next @param {"push" | "replace"} [how] */
  function show(next, how = "push") {
    view = next;
    byId("icicle-box").hidden = view === "outline";
    byId("icicle-scroll").hidden = view !== "icicle";
    byId("graph-scroll").hidden = view !== "graph";
    for (const id of ["width-tool", "order-tool"]) byId(id).hidden = view === "outline" || (id === "width-tool" && view === "graph");
    // Never hidden from a screen reader: in the other views it only leaves the screen.
    byId("outline-box").classList.toggle("off-screen-tree", view !== "outline");
    for (const radio of /** @type {NodeListOf<HTMLInputElement>} */ (document.querySelectorAll("#view-choice input"))) radio.checked = radio.value === view;
    write({ view: view === "icicle" ? null : view }, how);
    if (view === "graph" && !graph) openGraph().catch(() => note("The graph could not be loaded. Check the connection, and choose it again."));
    canvas.redraw();
    graph?.redraw();
    outline.select(selection.node);
  }

  async function openGraph() {
    const { TreeGraph } = await import("./graph.js");
    if (graph) return;
    graph = new TreeGraph(typed("graph", HTMLCanvasElement), { onSelect: choose, onHover: hint, onProbe, correct, answers });
    graph.show(scene());
    graph.select(selection.node);
    root.dataset.graph = "";
  }

  /** @param {number | null} node chosen; null: the reader moved the window, which Back need not undo */
  function zoomed(node) {
    if (isFollowing) return;
    zoomName = node ? nameOf(shape, node) : null;
    write({ zoom: zoomName }, node === null ? "replace" : "push");
  }

  /** The address changed by itself (Back, Forward): the page shows what it says. */
  function follow() {
    isFollowing = true;
    try {
      const next = /** @type {Width} */ (WIDTHS.find((name) => name === read("width")) ?? "leaves");
      const nextOrder = read("order") === "value" ? "value" : "sampling";
      if (next !== width || nextOrder !== order) {
        typed("width-choice", HTMLSelectElement).value = next;
        typed("order-choice", HTMLSelectElement).value = nextOrder;
        arrange(next, nextOrder);
      }
      show(VIEWS.find((name) => name === read("view")) ?? "icicle", "replace");
      colouring.follow();
      selection.follow(read("n"));
      if (read("zoom") !== zoomName) canvas.zoomTo(Math.max(0, nodeNamed(shape, read("zoom") ?? "0")), true);
      zoomName = read("zoom");
    } finally {
      isFollowing = false;
    }
  }

  byId("view-choice").addEventListener("change", (event) => show(/** @type {typeof VIEWS[number]} */ (/** @type {HTMLInputElement} */ (event.target).value)));
  byId("fit-tree").addEventListener("click", () => picture().fit());

  // What finds comes when somebody looks for something.
  const input = typed("find-input", HTMLInputElement);
  /** @type {() => void} */
  let findAgain = () => {};
  /** @type {Promise<void> | undefined} */
  let finder;
  function beginToFind() {
    finder ??= import("./find.js").then(({ mountFind }) => {
      findAgain = mountFind(page, (found) => {
        hits = found;
        canvas.show(scene(), true);
        graph?.show(scene());
        outline.show({ ...scene(), layout: shape });
      }, () => drawn);
    });
  }
  input.addEventListener("focus", beginToFind);
  shortcuts.add({ "/": () => { input.focus(); input.select(); } }, "find in this tree; Enter and Shift-Enter go through what was found");
  if (read("find")) beginToFind();

  // ---- keyboard

  const go = (/** @type {Parameters<typeof move>[2]} */ direction) => choose(move(drawn, selection.node, direction));
  shortcuts.add({ ArrowUp: () => go("up"), ArrowDown: () => go("down") }, "parent, first child", "canvas");
  shortcuts.add({ ArrowLeft: () => go("left"), ArrowRight: () => go("right") }, "previous, next sibling", "canvas");
  shortcuts.add({ Home: () => go("first"), End: () => go("last") }, "first, last sibling", "canvas");
  shortcuts.add({ PageUp: () => otherTree(-1), PageDown: () => otherTree(1) }, "previous, next tree in the list", "canvas");
  shortcuts.add({ Enter: () => picture().zoomTo(selection.node), Backspace: () => picture().zoomOut() }, "zoom in, zoom out", "canvas");
  shortcuts.add({ 0: () => picture().fit() }, "the whole tree");
  shortcuts.add({ n: () => choose(nextAlike(drawn, columns.verdict, selection.node, 1)), N: () => choose(nextAlike(drawn, columns.verdict, selection.node, -1)) }, "next, previous leaf of the same verdict");
  shortcuts.add({ 1: () => enter("icicle"), 2: () => enter("graph"), 3: () => enter("outline") }, "go to the icicle, the graph, the outline");
  shortcuts.add({ v: () => { const all = signalsOf(columns); colouring.by(/** @type {Signal} */ (all[(all.indexOf(colouring.signal.signal) + 1) % all.length])); } }, "next colour");

  /** By keyboard one is in the view that one asks for. @param {typeof VIEWS[number]} next */
  function enter(next) {
    show(next);
    const place = next === "outline" ? outline.element : byId(next);
    place.focus({ preventScroll: true });
    place.scrollIntoView({ block: "nearest" });
  }

  /** The next tree of the step, looked at in the same way. @param {number} by */
  function otherTree(by) {
    const links = /** @type {HTMLAnchorElement[]} */ ([...document.querySelectorAll(".tree-list-pane .tree-link")]);
    const at = links.findIndex((link) => link.closest("[aria-current]"));
    // Behind the last of a page comes the first of the next page of the list.
    const beyond = by > 0 && at === links.length - 1 ? byId("tree-list").dataset.next : undefined;
    const address = links[at + by]?.href ?? beyond;
    if (!address) return note(by > 0 ? "This is the last tree of the list." : "This is the first tree of the list beside it.");
    sessionStorage.setItem("focus-picture", "1");
    const next = new URL(address, location.href);
    const query = new URLSearchParams(location.search);
    for (const name of ["n", "zoom", "list"]) query.delete(name);
    const list = next.searchParams.get("list");
    if (list) query.set("list", list);
    location.assign(`${next.pathname}${query.size ? `?${query}` : ""}`);
  }
  if (sessionStorage.getItem("focus-picture")) {
    sessionStorage.removeItem("focus-picture");
    enter(view);
  }
}

/** A choice of the page, and what to do with it. @param {string} id @param {string} chosen @param {(value: string) => void} use */
function choice(id, chosen, use) {
  const select = typed(id, HTMLSelectElement);
  select.value = chosen;
  select.addEventListener("change", () => use(select.value));
  return select;
}
