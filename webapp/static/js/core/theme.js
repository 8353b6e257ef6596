// Light, dark, or as the system has it. The server sets the attribute before first paint from the cookie written here.

const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const forced = matchMedia("(forced-colors: active)");
/** The reader's own colours, where they are forced: a canvas has to ask for them. Data keep their scale. */
const FORCED = {
  Canvas: ["--bg", "--surface", "--sunken", "--accent-bg", "--bad-bg"],
  Highlight: ["--accent", "--focus"],
  GrayText: ["--line", "--text-3"],
};

/** @returns {Theme} the theme in use */
export function theme() {
  const chosen = root.dataset.theme;
  return chosen === "light" || chosen === "dark" ? chosen : system.matches ? "dark" : "light";
}

/** The next of: as the system, light, dark. */
export function switchTheme() {
  const order = ["", "light", "dark"];
  const next = order[(order.indexOf(root.dataset.theme ?? "") + 1) % order.length] ?? "";
  if (next) root.dataset.theme = next;
  else delete root.dataset.theme;
  const secure = location.protocol === "https:" ? "; secure" : "";
  document.cookie = `theme=${next}; path=/; max-age=${next ? 31_536_000 : 0}; samesite=lax${secure}`;
  changed();
}

/** @type {Set<() => void>} */
const listeners = new Set();
function changed() {
  colours.clear();
  for (const listener of listeners) listener();
}
system.addEventListener("change", changed);
forced.addEventListener("change", changed);

/** Canvases repaint. @param {() => void} listener */
export function onTheme(listener) {
  listeners.add(listener);
}

/** @type {Map<string, string>} */
const colours = new Map();

/** A token of `tokens.css`, as the colour it is in the theme in use. @param {string} token as in `--line` */
export function colour(token) {
  let value = colours.get(token);
  if (value === undefined) {
    const probe = document.createElement("span");
    // Else a forced colour is that of text, whatever the token.
    probe.style.setProperty("forced-color-adjust", "none");
    probe.style.color = forced.matches && !token.startsWith("--run-") ? (Object.entries(FORCED).find(([, tokens]) => tokens.includes(token))?.[0] ?? "CanvasText") : `var(${token})`;
    root.append(probe);
    value = getComputedStyle(probe).color;
    probe.remove();
    colours.set(token, value);
  }
  return value;
}

/** @param {number} slot of the run palette, 1 to 10 */
export const runColour = (slot) => colour(`--run-${((slot - 1) % 10) + 1}`);

/** @param {string} css as `colour` returns it @param {number} share 0..1 */
export function faded(css, share) {
  const [red, green, blue] = css.match(/[\d.]+/g) ?? [];
  return `rgba(${red}, ${green}, ${blue}, ${share})`;
}
