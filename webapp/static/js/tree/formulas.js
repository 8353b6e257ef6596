// Where formulas stand in a text. Pure; loaded with what typesets them.

/** Places of formulas. A dollar before a blank, or after one, is money. */
const MATHEMATICS = /\\\[([\s\S]{1,1000}?)\\\]|\\\(([\s\S]{1,1000}?)\\\)|(?<!\\)\$\$([\s\S]{1,1000}?)\$\$|(?<![\\$])\$(?![\s$])((?:[^$\n]|\\\$){0,1000}?[^\s$\\])\$(?![\d$])/g;

/**
 * A text in parts: plain ones, and formulas without their marks. @param {string} text
 * @returns {{text: string, tex: string | null, isDisplay: boolean}[]} the texts join to the whole
 */
export function formulas(text) {
  const parts = [];
  let done = 0;
  for (const match of text.matchAll(MATHEMATICS)) {
    if (match.index > done) parts.push({ text: text.slice(done, match.index), tex: null, isDisplay: false });
    const [whole, brackets, parentheses, dollars, dollar] = match;
    parts.push({ text: whole, tex: brackets ?? parentheses ?? dollars ?? dollar ?? "", isDisplay: brackets !== undefined || dollars !== undefined });
    done = match.index + whole.length;
  }
  if (done < text.length) parts.push({ text: text.slice(done), tex: null, isDisplay: false });
  return parts;
}

/**
 * Texts that join to the same whole as `texts`, with no formula cut in two: what of it stands in a later one moves up.
 * @param {string[]} texts @returns {string[]} as many
 */
export function unbroken(texts) {
  const whole = texts.join("");
  /** Ends of formulas by the places inside of them: first a sorted list, then walked along. @type {[number, number][]} */
  const ranges = [];
  let at = 0;
  for (const part of formulas(whole)) {
    if (part.tex !== null) ranges.push([at, at + part.text.length]);
    at += part.text.length;
  }
  const found = [];
  let [begin, boundary, next] = [0, 0, 0];
  for (const text of texts) {
    boundary += text.length;
    while (next < ranges.length && /** @type {[number, number]} */ (ranges[next])[1] <= boundary) next++;
    const range = ranges[next];
    const end = Math.max(begin, range && range[0] < boundary ? range[1] : boundary);
    found.push(whole.slice(begin, end));
    begin = end;
  }
  return found;
}
