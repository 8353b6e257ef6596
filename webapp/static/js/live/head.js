// The header of a run's pages, kept up to date; and its controls.
import { announce } from "../core/announce.js";
import { ApiError, post } from "../core/api.js";
import { byId, setText } from "../core/dom.js";
import { duration, statusGlyph, statusWord } from "../core/format.js";
import { load } from "../core/regions.js";
import { endedIn } from "./words.js";

const UNANSWERED_SECONDS = 30;

export class RunHead {
  #root = byId("run-head");
  #status = this.#root.dataset.status ?? "";
  #actions = this.#root.dataset.actions ?? "";
  /** @type {RunState | null} */ #state = null;
  #heardAt = 0;

  constructor() {
    this.#root.addEventListener("submit", (event) => void this.#submit(event));
    this.#root.addEventListener("keydown", (event) => {
      const open = event.key === "Escape" && event.target instanceof Element ? event.target.closest("details[open]") : null;
      if (!(open instanceof HTMLDetailsElement)) return;
      open.open = false;
      open.querySelector("summary")?.focus();
    });
    window.setInterval(() => this.#tellWish(), 1000);
  }

  /** @param {RunState} state */
  show(state) {
    this.#state = state;
    this.#heardAt = performance.now();
    const part = (/** @type {string} */ name) => this.#root.querySelector(`[data-state="${name}"]`);
    setText(part("glyph"), statusGlyph(state.shown));
    setText(part("word"), statusWord(state.shown));
    setText(part("reason"), state.told);
    setText(part("step"), String(state.step));
    setText(part("eta"), duration(state.eta_s));
    setText(part("phase"), state.phase_words);
    part("progress")?.setAttribute("value", String(state.step));
    const line = part("status");
    if (line) line.className = `run-status status status-${state.shown}`;
    setText(document.getElementById("status-step"), String(state.step));
    const eta = document.getElementById("status-eta");
    setText(eta, duration(state.eta_s));
    // Of a run that nobody works on there is nothing to expect.
    for (const place of [part("eta")?.parentElement, eta?.parentElement]) if (place) place.hidden = state.eta_s === null && !state.worker;
    const worker = document.getElementById("status-worker");
    setText(worker, state.worker);
    if (worker?.parentElement) worker.parentElement.hidden = !state.worker;
    const actions = state.actions.join(" ");
    if (state.status !== this.#status || actions !== this.#actions) {
      if (state.status !== this.#status) announce(`${state.name}: ${statusWord(state.shown)} ${state.told}`);
      [this.#status, this.#actions] = [state.status, actions];
      // What may be asked now, and how it ended, as the server writes it.
      load(location.href, ["run-controls", "run-outcome", "run-took", "active-runs"]).catch((error) => this.#say(String(error.message)));
    }
    this.#tellWish();
  }

  /** @param {SubmitEvent} event */
  async #submit(event) {
    const form = event.target;
    if (!(form instanceof HTMLFormElement) || !form.dataset.action) return;
    event.preventDefault();
    const details = form.closest("details");
    if (details) details.open = false;
    const buttons = /** @type {HTMLButtonElement[]} */ ([...this.#root.querySelectorAll("#run-controls button")]);
    for (const button of buttons) button.disabled = true;
    this.#say("");
    try {
      this.show(await post(`/runs/${this.#root.dataset.run}/${form.dataset.action}`, {}));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      // Refused, or the server is away: nothing was queued, so say so and leave the buttons.
      this.#say(`Not done. ${error.message}`);
    }
    for (const button of buttons) button.disabled = false;
  }

  /** @param {string} text */
  #say(text) {
    const place = byId("run-wish");
    place.hidden = text === "";
    setText(place, text);
  }

  /** Requested → acknowledged by the worker → done; when it is done, the status says so. */
  #tellWish() {
    const state = this.#state;
    if (!state) return;
    const wish = state.wish;
    if (!wish) {
      if (!byId("run-wish").textContent?.startsWith("Not done.")) this.#say("");
      return;
    }
    const waited = (state.wish_age_s ?? 0) + (performance.now() - this.#heardAt) / 1000;
    const slow = !wish.is_seen && waited >= UNANSWERED_SECONDS;
    const left = state.wish_ends_s == null ? null : state.wish_ends_s - (performance.now() - this.#heardAt) / 1000;
    const hint = left !== null ? `; ${endedIn(left)}. Steps after its last checkpoint are made again if it is taken up again.` : !slow ? "" : wish.kind === "kill" ? " It ends without it in a moment." : " It has not answered; Stop now does not wait for it.";
    this.#say(`${wish.asked} ${duration(Math.round(waited))} ago · ${wish.words}${slow ? "." : ""}${hint}`);
  }
}
