// "Branch here": the dialog that asks for continuations of a node, and what was sampled by hand, as it comes. All of it is
// the server's own HTML, the same that the page without scripts shows; here it is fetched again when there is something new.
import { json, post } from "../core/api.js";
import { byId, make, setText } from "../core/dom.js";
import { read, write } from "../core/url_state.js";
import { load } from "../core/regions.js";
import { revealHidden } from "../core/text.js";
import { announce } from "../core/announce.js";
import { asked, spoken } from "./probe_words.js";
import { nodeNamed } from "./walk.js";

const POLL_MILLISECONDS = 700;
/** While the server does not answer. */
const PATIENCE_MILLISECONDS = 5000;

/** The part of a page that shows a node's probes. Its element is replaced whenever there is something new. */
export class Probes {
  /** Of the continuation that is read. */ #current = "";
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  #tree;
  #pageOf;
  #page;

  /** @param {string} tree id @param {(node: string) => string} pageOf the page that has a node's section @param {TreePage} [page] with a picture */
  constructor(tree, pageOf, page) {
    this.#tree = tree;
    this.#pageOf = pageOf;
    this.#page = page;
    if (page) this.#current = elementOf(page.continuation);
    window.addEventListener("popstate", () => this.#read(elementOf(read("probe") ?? "")));
    document.addEventListener("visibilitychange", () => this.#wait(0));
    document.addEventListener("click", (event) => this.#onClick(event));
    document.addEventListener("keydown", (event) => this.#onKey(event));
    // Before the guard of all forms (`core/forms.js`) hears of it, which would send it once more.
    document.addEventListener("submit", (event) => void this.#onSubmit(event), true);
  }

  get #section() {
    return byId("probes");
  }

  /** New HTML is in place: go on reading where the reader was, and watch what is still being sampled. */
  shown() {
    revealHidden(this.#section);
    this.#section.classList.add("one-by-one");
    this.#draw();
    this.#read();
    this.#wait(POLL_MILLISECONDS);
  }

  /** Fetch the section of a node. @param {string} [node] the one that is shown */
  async reload(node = this.#section.dataset.node ?? "0") {
    if (!(await load(this.#pageOf(node), ["probes"]))) return;
    this.shown();
  }

  /** A probe was asked for: what comes first is its first continuation. @param {string} node */
  async asked(node) {
    this.#current = "";
    await this.reload(node);
  }

  /** Someone wants to read this one. Its node's HTML may still be on the way. @param {string} id `12.3`, or "" */
  choose(id) {
    if (!id) return;
    write({ probe: id });
    this.#current = elementOf(id);
    if (!document.getElementById(this.#current)) return;
    this.#read();
    byId("probes").querySelector(".continuation[data-current]")?.scrollIntoView({ block: "nearest" });
  }

  // ---- reading one by one

  /** @param {string} [id] of a continuation; without: the one read before, or the first */
  #read(id = this.#current) {
    const all = [...this.#section.querySelectorAll(".continuation")];
    const chosen = all.find((one) => one.id === id) ?? all[0];
    this.#current = chosen?.id ?? id;
    this.#tell(chosen?.id.slice(2).replace("-", ".") ?? "");
    for (const one of all) one.toggleAttribute("data-current", one === chosen);
    for (const lane of this.#section.querySelectorAll(".probe-lane")) {
      const cells = [...lane.querySelectorAll(".probe-cell")];
      const current = cells.find((cell) => chosen !== undefined && cell.getAttribute("href") === `#${chosen.id}`);
      for (const cell of cells) {
        if (cell === current) cell.setAttribute("aria-current", "true");
        else cell.removeAttribute("aria-current");
        // A lane is one stop for the Tab key; arrow keys go along it.
        cell.setAttribute("tabindex", cell === (current ?? cells[0]) ? "0" : "-1");
      }
    }
  }

  /** The picture marks what is read. @param {string} id */
  #tell(id) {
    if (!this.#page || this.#page.continuation === id) return;
    this.#page.continuation = id;
    this.#page.root.dispatchEvent(new Event("probed"));
  }

  /** The picture draws what the section tells of its node. */
  #draw() {
    const told = this.#section.querySelector("#probes-drawn")?.textContent;
    if (!this.#page || !told) return;
    const { probed, layout, root } = this.#page;
    const node = nodeNamed(layout, this.#section.dataset.node ?? "0");
    if (JSON.stringify(probed.get(node)) === JSON.stringify(JSON.parse(told))) return;
    probed.set(node, JSON.parse(told));
    root.dispatchEvent(new Event("probed"));
  }

  /** @param {MouseEvent} event */
  #onClick(event) {
    const cell = /** @type {Element} */ (event.target).closest?.(".probe-cell");
    if (!cell) return;
    event.preventDefault();
    this.#pick(cell);
  }

  /** Read by choice: the address says so. @param {Element} cell */
  #pick(cell) {
    const id = cell.getAttribute("href")?.slice(1) ?? "";
    if (this.#page) write({ probe: id.slice(2).replace("-", ".") });
    this.#read(id);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const cell = /** @type {Element} */ (event.target).closest?.(".probe-cell");
    if (!(cell instanceof HTMLElement)) return;
    const cells = /** @type {HTMLElement[]} */ ([...(cell.closest(".probe-lane")?.querySelectorAll(".probe-cell") ?? [])]);
    const at = cells.indexOf(cell);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: cells.length - 1 }[event.key];
    const next = to === undefined ? undefined : cells[to];
    if (!next) return;
    event.preventDefault();
    this.#pick(next);
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  }

  /** Cancelling leaves the page where it is. @param {SubmitEvent} event */
  async #onSubmit(event) {
    const probe = /** @type {Element} */ (event.target).closest(".probe-cancel")?.closest("[data-probe]");
    if (!(probe instanceof HTMLElement)) return;
    event.preventDefault();
    try {
      await post(`/probes/${probe.dataset.probe}/cancel`, {});
      await this.reload();
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      setText(probe.querySelector(".probe-words"), `Not cancelled. ${error.message}`);
    }
  }

  // ---- as they come

  /** @param {number} milliseconds */
  #wait(milliseconds) {
    clearTimeout(this.#timer);
    // A hidden tab rests and looks when it is seen again.
    if (document.hidden || !this.#section.querySelector("[data-active]")) return;
    this.#timer = setTimeout(() => void this.#look(), milliseconds);
  }

  /** Ask after each probe that is not over; fetch the section when one of them has something new. */
  async #look() {
    const section = this.#section;
    const active = /** @type {HTMLElement[]} */ ([...section.querySelectorAll("[data-active]")]);
    try {
      const states = await Promise.all(active.map((probe) => json(`/probes/${probe.dataset.probe}?after=${Number(probe.dataset.done) - 1}`)));
      if (this.#section !== section) return;
      const changed = states.filter((state, i) => String(state.n_done) !== active[i]?.dataset.done || state.status !== active[i]?.dataset.status);
      if (changed.length) {
        await this.reload();
        for (const state of changed) announce(spoken(state));
        return;
      }
      states.forEach((state, i) => setText(active[i]?.querySelector(".probe-words") ?? null, state.words));
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      for (const probe of active) setText(probe.querySelector(".probe-words"), `${error.message} It is asked again in a moment.`);
      this.#wait(PATIENCE_MILLISECONDS);
      return;
    }
    this.#wait(POLL_MILLISECONDS);
  }
}

/**
 * The dialog of a tree's page. It holds the same form as the page without scripts, fetched for the node when it opens.
 * Returns how to open it.
 * @param {TreePage} page @param {Probes} probes @param {HTMLDialogElement} dialog
 */
export function mountDialog({ treeId, selection }, probes, dialog) {
  const open = async () => {
    if (dialog.open) return;
    const node = selection.name;
    setText(byId("branch-dialog-node"), node === "0" ? "the prompt" : `node ${node}`);
    byId("branch-form").replaceChildren(make("p", { class: "secondary" }, "Fetching the form…"));
    dialog.showModal();
    try {
      if (!(await load(`/t/${treeId}/branch?n=${node}`, ["branch-form"]))) return;
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      byId("branch-form").replaceChildren(make("p", { class: "problem", role: "alert" }, error.message));
      return;
    }
    const form = byId("branch-form");
    revealHidden(form);
    for (const part of /** @type {NodeListOf<HTMLElement>} */ (form.querySelectorAll("[data-dialog]"))) part.hidden = false;
    form.querySelector("textarea")?.focus();
  };

  dialog.addEventListener("click", (event) => {
    const target = /** @type {Element} */ (event.target);
    if (target === dialog || target.closest("#branch-close")) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) dialog.querySelector("form")?.requestSubmit();
  });
  dialog.addEventListener("submit", async (event) => {
    const form = event.target;
    if (!(form instanceof HTMLFormElement)) return;
    event.preventDefault();
    const node = form.dataset.node ?? "0";
    const button = form.querySelector("button[type=submit]");
    if (button instanceof HTMLButtonElement) button.disabled = true;
    try {
      await post(`/trees/${treeId}/nodes/${node}/branch`, asked(new FormData(form)));
      dialog.close();
      if (selection.name === node) await probes.asked(node);
      byId("probes").scrollIntoView({ block: "nearest" });
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      const problem = form.querySelector("#branch-problem");
      problem?.removeAttribute("hidden");
      setText(problem, error.message);
      problem?.scrollIntoView({ block: "nearest" });
    } finally {
      if (button instanceof HTMLButtonElement) button.disabled = false;
    }
  });
  return open;
}

/** The element of a continuation. @param {string} id `12.3`, or "" */
const elementOf = (id) => (id ? `c-${id.replace(".", "-")}` : "");
