// An answer judged again: the inspector's verifier part. It is the server's own HTML, fetched again when there is something
// new; without this script its forms lead to the node's page.
import { announce } from "../core/announce.js";
import { json, post } from "../core/api.js";
import { byId, setText } from "../core/dom.js";
import { load } from "../core/regions.js";
import { asked, spoken } from "./verifying_words.js";

const POLL_MILLISECONDS = 1000;
/** After half a minute, and while the server does not answer. */
const PATIENCE_MILLISECONDS = 5000;
const SOON_MILLISECONDS = 30_000;

/** @param {string} treeId @param {() => string} nodeName @returns {() => void} what to call when a node's HTML is in place */
export function mountVerifier(treeId, nodeName) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  let since = performance.now();
  let isAsking = false; // a button that was disabled meanwhile would lose the focus

  const part = () => document.getElementById("verifier-part");

  const wait = (milliseconds = performance.now() - since < SOON_MILLISECONDS ? POLL_MILLISECONDS : PATIENCE_MILLISECONDS) => {
    clearTimeout(timer);
    // A hidden tab rests and looks when it is seen again.
    if (document.hidden || !part()?.querySelector("[data-active]")) return;
    timer = setTimeout(() => void look(), milliseconds);
  };

  /** @param {string} node */
  const reload = async (node) => {
    // What is typed in the form below stays. Whoever has gone on to another node sees nothing of this one.
    const earlier = () => /** @type {HTMLDetailsElement | null} */ (document.getElementById("verifications-earlier"));
    const wasOpen = earlier()?.open ?? false;
    await load(`/t/${treeId}/n/${node}`, ["verifications"], { instead: () => (part()?.dataset.node === node && nodeName() === node ? null : []) });
    const now = earlier();
    if (now) now.open = wasOpen;
    wait();
  };

  const look = async () => {
    const shown = part();
    const active = /** @type {HTMLElement[]} */ ([...(shown?.querySelectorAll("[data-active]") ?? [])]);
    try {
      const states = await Promise.all(active.map((one) => json(`/verifications/${one.dataset.verification}`)));
      if (!shown || part() !== shown || active.some((one) => !one.isConnected)) return;
      const ended = states.filter((state) => !state.is_active);
      if (ended.length) {
        await reload(shown.dataset.node ?? "0");
        for (const state of ended) announce(spoken(state));
        return;
      }
      states.forEach((state, i) => setText(active[i]?.querySelector(".verification-words") ?? null, state.words));
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      for (const one of active) setText(one.querySelector(".verification-words"), `${error.message} It is asked again in a moment.`);
      wait(PATIENCE_MILLISECONDS);
      return;
    }
    wait();
  };

  // Before the guard of all forms (`core/forms.js`) hears of it, which would send it once more.
  document.addEventListener("submit", async (event) => {
    const form = /** @type {HTMLFormElement} */ (event.target);
    if (!form.matches(".verify-form")) return;
    event.preventDefault();
    const node = part()?.dataset.node ?? "0";
    if (isAsking) return;
    isAsking = true;
    try {
      await post(`/trees/${treeId}/nodes/${node}/verifications`, asked(new FormData(form)));
      const problem = document.getElementById("verify-problem");
      if (problem) problem.hidden = true;
      // The form closes; who came from it goes on at the words that opened it.
      const details = form.closest("details");
      if (details?.contains(document.activeElement)) byId("verify-with").focus();
      if (details) details.open = false;
      since = performance.now();
      await reload(node);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      const problem = document.getElementById("verify-problem");
      problem?.removeAttribute("hidden");
      setText(problem, error.message);
      problem?.scrollIntoView({ block: "nearest" });
    } finally {
      isAsking = false;
    }
  }, true);
  document.addEventListener("visibilitychange", () => wait(0));

  return () => {
    part()?.setAttribute("data-ready", "");
    since = performance.now();
    wait();
  };
}
