// Text that a model or a data set wrote. It is shown as it is; characters that hide or turn round other characters are
// shown as capsules with their number, because a reader must see what is there.

// Bidirectional controls, zero-width and other invisible characters, and control characters but tab and line break.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]/g;

/**
 * The text in parts: plain ones and hidden characters. Pure.
 * @param {string} text @returns {{text: string, hidden: boolean}[]}
 */
export function parts(text) {
  const found = [];
  let done = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if (match.index > done) found.push({ text: text.slice(done, match.index), hidden: false });
    found.push({ text: match[0], hidden: true });
    done = match.index + match[0].length;
  }
  if (done < text.length) found.push({ text: text.slice(done), hidden: false });
  return found;
}

/** `U+202E`. @param {string} character */
export const codePoint = (character) => `U+${/** @type {number} */ (character.codePointAt(0)).toString(16).toUpperCase().padStart(4, "0")}`;

/** Show the hidden characters of what the server rendered. Elements are marked `data-model-text`. @param {ParentNode} root */
export function revealHidden(root) {
  for (const element of root.querySelectorAll("[data-model-text]")) {
    const text = element.textContent ?? "";
    const found = parts(text);
    if (!found.some((part) => part.hidden)) continue;
    element.replaceChildren(
      ...found.map((part) => {
        if (!part.hidden) return document.createTextNode(part.text);
        const capsule = document.createElement("span");
        capsule.className = "capsule";
        capsule.textContent = codePoint(part.text);
        return capsule;
      }),
    );
  }
}
