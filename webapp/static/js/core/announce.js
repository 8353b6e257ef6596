// A polite word for screen readers: at most one per ten seconds, the newest wins.
import { byId, setText } from "./dom.js";

export const QUIET_SECONDS = 10;

/**
 * @param {(text: string) => void} say @param {{now: () => number, later: (callback: () => void, milliseconds: number) => void}} clock
 * @returns {(text: string) => void}
 */
export function announcer(say, clock) {
  let last = -Infinity;
  /** @type {string | null} */
  let waiting = null;
  return (text) => {
    const wait = last + 1000 * QUIET_SECONDS - clock.now();
    if (waiting !== null) {
      waiting = text;
    } else if (wait <= 0) {
      last = clock.now();
      say(text);
    } else {
      waiting = text;
      clock.later(() => {
        last = clock.now();
        const latest = /** @type {string} */ (waiting);
        waiting = null;
        say(latest);
      }, wait);
    }
  };
}

/** A polite word for screen readers, on any page. */
export const announce = announcer((text) => setText(byId("announcer"), text), {
  now: () => performance.now(),
  later: (callback, milliseconds) => void setTimeout(callback, milliseconds),
});
