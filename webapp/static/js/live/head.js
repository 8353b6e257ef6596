// The header of a run's pages, kept up to date; and the Stop button.
import { announce } from "../core/announce.js";
import { ApiError, post } from "../core/api.js";
import { byId, make, setText } from "../core/dom.js";
import { duration, hasEnded, number, statusGlyph, statusWord } from "../core/format.js";

const UNANSWERED_SECONDS = 30;

export class RunHead {
  #root = byId("run-head");
  #status = this.#root.dataset.status ?? "";
  /** @type {number | null} */ #askedAt = null;
  /** @type {RunState | null} */ #state = null;

  constructor() {
    const form = document.getElementById("stop-form");
    if (form instanceof HTMLFormElement) this.#arm(form);
    window.setInterval(() => this.#tellStop(), 1000);
  }

  /** @param {RunState} state */
  show(state) {
    this.#state = state;
    const part = (/** @type {string} */ name) => this.#root.querySelector(`[data-state="${name}"]`);
    setText(part("glyph"), statusGlyph(state.status));
    setText(part("word"), statusWord(state.status));
    setText(part("reason"), state.reason);
    setText(part("step"), String(state.step));
    setText(part("eta"), duration(state.eta_s));
    setText(part("phase"), state.phase ? `${state.phase}${state.phase_total ? ` ${state.phase_done} of ${state.phase_total}` : ""}` : "");
    part("progress")?.setAttribute("value", String(state.step));
    const line = part("status");
    if (line) line.className = `run-status status status-${state.status}`;
    setText(document.getElementById("status-step"), String(state.step));
    setText(document.getElementById("status-eta"), duration(state.eta_s));
    setText(document.getElementById("status-worker"), state.worker);
    const form = document.getElementById("stop-form");
    if (form) form.hidden = hasEnded(state.status);
    if (state.status !== this.#status) {
      this.#status = state.status;
      announce(`${state.name}: ${statusWord(state.status)}. ${state.reason}`);
    }
    this.#tellStop();
  }

  /** Ask twice, in place: first the question, then the deed. @param {HTMLFormElement} form */
  #arm(form) {
    const stop = /** @type {HTMLButtonElement} */ (byId("stop-button"));
    const yes = make("button", { type: "button", class: "danger" }, "Stop this run");
    const no = make("button", { type: "button", class: "quiet" }, "Keep running");
    const question = make("span", { class: "stop-question", hidden: true }, "Everything it made is kept.", yes, no);
    form.append(question);
    const ask = (/** @type {boolean} */ asking) => {
      question.hidden = !asking;
      stop.hidden = asking;
      (asking ? yes : stop).focus();
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      ask(true);
    });
    no.addEventListener("click", () => ask(false));
    question.addEventListener("keydown", (event) => {
      if (event.key === "Escape") ask(false);
    });
    yes.addEventListener("click", async () => {
      question.hidden = true;
      stop.hidden = false;
      stop.disabled = true;
      this.#askedAt = performance.now();
      this.#tellStop();
      try {
        this.show(await post(`/runs/${this.#root.dataset.run}/stop`, {}));
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        // Refused, or the server is away: nothing was queued, so say so and leave the button.
        this.#askedAt = null;
        stop.disabled = false;
        setText(this.#root.querySelector('[data-state="stop"]'), `Not stopped. ${error.message}`);
      }
    });
  }

  /** Requested → acknowledged by the worker → done. */
  #tellStop() {
    const state = this.#state;
    const place = this.#root.querySelector('[data-state="stop"]');
    const stop = document.getElementById("stop-button");
    if (!place || !(stop instanceof HTMLButtonElement)) return;
    const requested = this.#askedAt !== null || state?.wish;
    if (!requested || !state || hasEnded(state.status)) return;
    stop.disabled = true;
    this.#askedAt ??= performance.now();
    const waited = (performance.now() - this.#askedAt) / 1000;
    if (state.status === "stopping") setText(place, "The worker is stopping: it finishes what it is at and saves a checkpoint.");
    else if (waited < UNANSWERED_SECONDS) setText(place, "Stop requested; waiting for the worker.");
    else setText(place, `The worker has not answered for ${number(waited, 0)} s. If it is lost, the run is stopped as soon as its lease ends.`);
  }
}
