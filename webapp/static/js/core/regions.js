// Parts of a page, fetched again: the server renders the whole page as ever, and the elements of the answer with the same
// ids replace those here. Whatever goes wrong, the old content stays. This is the only place where HTML is parsed.

// Accepts only what this server rendered for this page's reader: `load` checks the origin, the status and the type first.
const policy = window.trustedTypes?.createPolicy("arborist", { createHTML: (html) => html });

/** @type {Map<string, AbortController>} */
const running = new Map();

/**
 * Fetch a page and put its elements `ids` in the place of ours. A newer request for the same first id aborts an older one.
 * @param {string} path @param {string[]} ids @param {{refused?: boolean, instead?: (page: Document) => string[] | null}} [options]
 * `refused`: an answer of status 400 is a page too, which says what was wrong with what was asked; `instead`: other elements
 * than `ids`, told by the answer
 * @returns {Promise<boolean>} false: a newer request took over, nothing was changed
 * @throws {Error} with a sentence for the reader
 */
export async function load(path, ids, { refused = false, instead = () => null } = {}) {
  const key = /** @type {string} */ (ids[0]);
  running.get(key)?.abort();
  const controller = new AbortController();
  running.set(key, controller);
  try {
    const page = await fetchPage(path, controller.signal, refused);
    // All or nothing: a page that lacks one of them is not the page that was asked for.
    const pairs = (instead(page) ?? ids).map((id) => {
      const [fresh, old] = [page.getElementById(id), document.getElementById(id)];
      if (!fresh || !old) throw new Error("The server's answer is not the page that was asked for. Reload to see what it has to say.");
      return { fresh: document.adoptNode(fresh), old };
    });
    for (const { fresh, old } of pairs) replace(old, fresh);
    return true;
  } catch (error) {
    if (controller.signal.aborted) return false;
    throw error;
  } finally {
    if (running.get(key) === controller) running.delete(key);
  }
}

/** @param {string} path @param {AbortSignal} signal @param {boolean} refused */
async function fetchPage(path, signal, refused) {
  let response;
  try {
    response = await fetch(new URL(path, location.href), { credentials: "same-origin", mode: "same-origin", signal, headers: { accept: "text/html" } });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Error("The server could not be reached. Try again in a moment.");
  }
  if (new URL(response.url).pathname.startsWith("/login/")) throw new Error("You were logged out. Reload the page to log in again.");
  const isFailure = !response.ok && !(refused && response.status === 400);
  if (!response.headers.get("content-type")?.startsWith("text/html")) throw new Error("The server did not answer with a page.");
  const html = await response.text();
  // What comes out is inert: no script in it runs, now or after it was moved here.
  const page = new DOMParser().parseFromString(/** @type {string} */ (/** @type {unknown} */ (policy ? policy.createHTML(html) : html)), "text/html");
  if (isFailure) throw new Error(`${page.querySelector(".problem")?.textContent?.trim() ?? `The server answered ${response.status}.`} Try again in a moment.`);
  return page;
}

/** Focus stays where it was, or as near as the new content allows. @param {Element} old @param {HTMLElement} fresh */
function replace(old, fresh) {
  const focused = document.activeElement;
  const inside = focused !== null && focused !== document.body && old.contains(focused);
  old.replaceWith(fresh);
  if (!inside) return;
  const again = focused.id ? document.getElementById(focused.id) : null;
  if (again) {
    if (!again.matches("summary")) again.closest("details")?.setAttribute("open", "");
    again.focus({ preventScroll: true });
  } else {
    if (!fresh.hasAttribute("tabindex")) fresh.tabIndex = -1;
    fresh.focus({ preventScroll: true });
  }
}
