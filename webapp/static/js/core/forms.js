// Forms that change something are sent only to a server that answers. Otherwise the page stays as it is, with what was
// typed in it, and says why: nothing is lost, and nothing waits to be sent.
import { make } from "./dom.js";
import { whyUnreachable } from "./reach.js";

const PATIENCE_SECONDS = 4;

/** @type {WeakSet<HTMLFormElement>} */
const cleared = new WeakSet();

export function guardForms() {
  document.addEventListener("submit", (event) => {
    const form = event.target;
    // A form that a script sends itself is that script's business.
    if (!(form instanceof HTMLFormElement) || event.defaultPrevented || form.method !== "post") return;
    if (cleared.delete(form)) return;
    event.preventDefault();
    void send(form, event.submitter);
  });
}

/** @param {HTMLFormElement} form @param {HTMLElement | null} submitter */
async function send(form, submitter) {
  const away = whyUnreachable() ?? (await trouble());
  form.querySelector(":scope > .not-sent")?.remove();
  if (!away) {
    cleared.add(form);
    form.requestSubmit(submitter);
    return;
  }
  const told = make("p", { class: "problem not-sent", role: "alert" }, `Not sent. ${away} Nothing was queued, and what you typed is still here: send it again in a moment.`);
  form.append(told);
  told.scrollIntoView({ block: "nearest" });
}

/** Why the server takes nothing now; null when it does. @returns {Promise<string | null>} */
async function trouble() {
  try {
    const answer = await fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(1000 * PATIENCE_SECONDS) });
    return answer.status === 503 ? "The database is unreachable." : null;
  } catch {
    return "The server does not answer.";
  }
}
