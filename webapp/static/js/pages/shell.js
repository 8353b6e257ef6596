// On every page: shows what needs a script, switches the theme, makes hidden characters visible.
import { announce } from "../core/announce.js";
import { revealScripted, setText, typed } from "../core/dom.js";
import { guardForms } from "../core/forms.js";
import { ago } from "../core/format.js";
import { onKeys } from "../core/keys.js";
import { revealHidden } from "../core/text.js";
import { switchTheme } from "../core/theme.js";

revealScripted(document);
revealHidden(document);
guardForms();

const button = document.getElementById("theme-toggle") && typed("theme-toggle", HTMLButtonElement);
if (button) {
  const words = { "": ["◐", "as the system has it"], light: ["○", "light"], dark: ["●", "dark"] };
  const show = () => {
    const [glyph, word] = words[/** @type {"" | Theme} */ (document.documentElement.dataset.theme ?? "")];
    button.textContent = /** @type {string} */ (glyph);
    button.setAttribute("aria-label", `Theme: ${word}`);
    button.title = `Theme: ${word} (t)`;
  };
  const next = () => {
    switchTheme();
    show();
  };
  button.addEventListener("click", next);
  onKeys({ t: next });
  show();
}

// Ages go on.
setInterval(() => {
  for (const time of /** @type {NodeListOf<HTMLTimeElement>} */ (document.querySelectorAll("time[data-ago]"))) {
    setText(time, ago((Date.now() - Date.parse(time.dateTime)) / 1000));
  }
}, 10_000);

// Menus close when the reader goes elsewhere.
const menus = () => /** @type {NodeListOf<HTMLDetailsElement>} */ (document.querySelectorAll("details.menu[open]"));
document.addEventListener("click", (event) => {
  for (const menu of menus()) if (!menu.contains(/** @type {Node} */ (event.target))) menu.open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of menus()) {
    if (menu.contains(document.activeElement)) menu.querySelector("summary")?.focus();
    menu.open = false;
  }
});
// `/` goes to the page's filter.
const filter = () => /** @type {HTMLInputElement | null} */ (document.querySelector("main input[type=search]"));
const toFilter = () => {
  filter()?.focus();
  filter()?.select();
};
if (filter()) onKeys({ "/": toFilter });

// Escape leaves a filter for where the reader was before. One that filters as it is typed is cleared first, as browsers do.
/** @type {EventTarget | null} */
let before = null;
const isFilter = (/** @type {EventTarget | null} */ target) => target instanceof HTMLInputElement && target.type === "search";
document.addEventListener("focusin", (event) => {
  if (isFilter(event.target)) before = event.relatedTarget;
});
document.addEventListener("keydown", (event) => {
  const box = event.target;
  if (event.key !== "Escape" || !(box instanceof HTMLInputElement) || !isFilter(box) || document.activeElement !== box || (!box.form && box.value)) return;
  event.preventDefault();
  box.value = box.defaultValue;
  if (before instanceof HTMLElement && before.isConnected) before.focus({ preventScroll: true });
  else box.blur();
});
document.getElementById("form-problem")?.focus();

// What is shown once can be copied with one press.
document.addEventListener("click", (event) => {
  const copy = /** @type {Element} */ (event.target).closest("[data-copy]");
  const field = copy instanceof HTMLElement && document.getElementById(copy.dataset.copy ?? "");
  if (copy && field instanceof HTMLInputElement) void copyField(copy, field);
});

/** Without a right to the clipboard the text is selected, ready to be copied by hand. @param {Element} button @param {HTMLInputElement} field */
async function copyField(button, field) {
  field.select();
  try {
    await navigator.clipboard.writeText(field.value);
    setText(button, "Copied");
  } catch {
    setText(button, "Selected: copy it with the keyboard");
  }
  announce(button.textContent ?? "");
}
