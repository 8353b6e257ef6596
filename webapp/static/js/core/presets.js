// Which presets a search leaves. Pure.

/**
 * Every word of the query must stand somewhere in the text; dashes, dots and blanks are all the same.
 * @param {string[]} texts @param {string} query @returns {boolean[]}
 */
export function filterPresets(texts, query) {
  const words = plain(query).split(" ").filter(Boolean);
  return texts.map((text) => {
    const there = plain(text);
    const together = there.replaceAll(" ", "");
    return words.every((word) => there.includes(word) || together.includes(word));
  });
}

/** @param {string} text */
const plain = (text) => text.toLowerCase().replace(/[\s\-_.·*]+/g, " ").trim();
