// Making elements. Text goes in as text and nothing else: there is no way to pass markup.

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag @param {Record<string, string | number | boolean | null | undefined>} [attributes] `false`, null: left out
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children);
  return element;
}

/** An element that the page's template promises. @param {string} id @returns {HTMLElement} */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`The page has no element with id ${id}.`);
  return element;
}

/** @template {HTMLElement} T @param {string} id @param {new () => T} type @returns {T} */
export function typed(id, type) {
  const element = byId(id);
  if (!(element instanceof type)) throw new Error(`Element ${id} is a ${element.tagName}, not a ${type.name}.`);
  return element;
}

/** What the template put there with `json_script`. @param {string} id @returns {any} Its shape is the view's word. */
export const data = (id) => JSON.parse(byId(id).textContent ?? "null");

/** Set text only where it differs, so that a reader's selection survives. @param {Element | null} element @param {string} text */
export function setText(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

/** Show what needs a script, hide what only its absence needs. @param {ParentNode} root */
export function revealScripted(root) {
  for (const element of root.querySelectorAll("[data-script][hidden]")) element.removeAttribute("hidden");
  for (const element of root.querySelectorAll("[data-no-script]")) element.setAttribute("hidden", "");
}
