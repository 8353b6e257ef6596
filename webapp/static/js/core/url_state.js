// Selections that a colleague would want to see live in the URL, the default left out.

/** @param {string} name */
export const read = (name) => new URLSearchParams(location.search).get(name);

/**
 * The query with some parameters changed; null or the default removes one. Pure.
 * @param {string} search @param {Record<string, string | null>} changes
 */
export function changed(search, changes) {
  const query = new URLSearchParams(search);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null) query.delete(name);
    else query.set(name, value);
  }
  // Commas stay readable: ?with=13,14
  const text = query.toString().replaceAll("%2C", ",");
  return text ? `?${text}` : "";
}

/** @param {Record<string, string | null>} changes @param {"replace" | "push"} [how] `push` where Back should undo it */
export function write(changes, how = "replace") {
  const next = changed(location.search, changes);
  if (next === location.search) return;
  const url = location.pathname + next;
  if (how === "push") history.pushState(null, "", url);
  else history.replaceState(null, "", url);
}
