// Formulas of model text, typeset on request. KaTeX comes when the first one is asked for. It may do nothing but lay out
// symbols: no links, no sizes beyond reason, no macros that unfold for ever; what it cannot read is shown as it is.
import { byId, make } from "../core/dom.js";
import { formulas } from "./formulas.js";

const SETTINGS = { trust: false, strict: "ignore", maxSize: 20, maxExpand: 200, throwOnError: false, errorColor: "currentColor" };
/** @type {Promise<typeof import("../../vendor/katex.js").default> | undefined} */
let library;

async function katex() {
  if (!library) {
    document.head.append(make("link", { rel: "stylesheet", href: byId("reader-tools").dataset.mathStyle ?? "" }));
    library = import("../../vendor/katex.js").then((module) => module.default);
  }
  return library;
}

/**
 * Put a text into an element with its formulas typeset; the plain text is there until KaTeX is.
 * @param {Element} element @param {string} text @param {(text: string) => (Node | string)[]} plain
 */
export async function typeset(element, text, plain) {
  const found = formulas(text);
  element.replaceChildren(...plain(text));
  if (!found.some((part) => part.tex !== null)) return;
  const before = element.firstChild;
  const { render } = await katex();
  if (element.firstChild !== before) return; // drawn again meanwhile
  element.replaceChildren(
    ...found.flatMap((part) => {
      if (part.tex === null) return plain(part.text);
      const box = make("span", { class: part.isDisplay ? "formula formula-display" : "formula", title: part.text });
      try {
        render(part.tex, box, { ...SETTINGS, displayMode: part.isDisplay });
      } catch {
        box.textContent = part.text; // too deep for it
      }
      return [box];
    }),
  );
}
