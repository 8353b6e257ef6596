// What binds two trees together: the same place in both, and one scale of colours. Pure.
import { colourScale } from "../tree/colour.js";
import { nodeNamed } from "../tree/walk.js";

/**
 * The node of that name, or the nearest one above it that exists.
 * @param {Layout} tree @param {string} name @returns {{node: number, found: boolean}}
 */
export function ancestorNamed(tree, name) {
  const parts = name.split(".");
  for (let length = parts.length; length > 0; length--) {
    const node = nodeNamed(tree, parts.slice(0, length).join("."));
    if (node >= 0) return { node, found: length === parts.length };
  }
  return { node: 0, found: false };
}

/**
 * The same signals over one scale, as wide as the widest of them.
 * @template {{signal: Signal, limit: number, scale: {low: number}}} S @param {S[]} signals @param {Theme} theme @returns {S[]}
 */
export function linked(signals, theme) {
  const limit = Math.max(...signals.map((one) => one.limit));
  const low = Math.min(...signals.map((one) => one.scale.low));
  return signals.map((one) => ({ ...one, limit, scale: colourScale(one.signal, limit, theme, low) }));
}
