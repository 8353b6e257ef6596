// Find in tree: the letters are looked for on the server, in whole texts; what was found is marked in every view.
import { json } from "../core/api.js";
import { byId, setText, typed } from "../core/dom.js";
import { read, write } from "../core/url_state.js";
import { Found } from "./found.js";

const PATIENCE_MILLISECONDS = 250;

/**
 * @param {TreePage} page @param {(found: Found | null) => void} show @param {() => Layout} drawn the layout in use
 */
export function mountFind({ treeId, selection }, show, drawn) {
  const input = typed("find-input", HTMLInputElement);
  const words = byId("find-words");
  const steps = [typed("find-previous", HTMLButtonElement), typed("find-next", HTMLButtonElement)];
  /** @type {Found | null} */
  let found = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  /** @type {AbortController | null} */
  let running = null;

  async function find() {
    running?.abort();
    const query = input.value;
    write({ find: query || null });
    if (!query) return tell(null, "");
    running = new AbortController();
    try {
      const answer = await json(`/trees/${treeId}/find?q=${encodeURIComponent(query)}`, { signal: running.signal });
      found = new Found(drawn(), answer.nodes, answer.total);
      tell(found, "");
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      if (error.name !== "AbortError") tell(null, error.message);
    }
  }

  /** @param {Found | null} next @param {string} problem */
  function tell(next, problem) {
    found = next;
    show(found);
    say(problem);
    for (const step of steps) step.disabled = !found?.inOrder.length;
  }

  function say(problem = "") {
    if (problem || !found) return setText(words, problem);
    if (!found.total) return setText(words, "not in this tree");
    const here = found.inOrder.indexOf(selection.node);
    const all = `${found.total} node${found.total === 1 ? "" : "s"}`;
    setText(words, `${here < 0 ? all : `${here + 1} of ${all}`}${found.total > found.inOrder.length ? `, the first ${found.inOrder.length} marked` : ""}`);
  }

  /** @param {1 | -1} step */
  const go = (step) => {
    const node = found?.next(selection.node, step) ?? -1;
    if (node >= 0) selection.choose(node);
  };

  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => void find(), PATIENCE_MILLISECONDS);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      event.preventDefault();
      go(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape") {
      input.value = "";
      void find();
      const picture = [byId("icicle"), byId("graph")].find((one) => one.checkVisibility()) ?? byId("outline-box").querySelector("[role=tree]");
      /** @type {HTMLElement | null} */ (picture)?.focus({ preventScroll: true });
    }
  });
  steps[0]?.addEventListener("click", () => go(-1));
  steps[1]?.addEventListener("click", () => go(1));
  selection.subscribe(() => say());
  input.value ||= read("find") ?? ""; // or what was typed before this script was here
  if (input.value) void find();
  // Places are another layout's when the tree is drawn anew.
  return () => { if (found) tell(found.in(drawn()), ""); };
}
