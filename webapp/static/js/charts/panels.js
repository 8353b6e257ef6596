// Which panels there are. The server's catalogue says it for every known metric; what a run logs beside them gets a panel
// each, at the end. Pure.

/**
 * @typedef {object} Panel
 * @property {string} title
 * @property {string} section
 * @property {boolean} pinned stands there before anything is logged
 * @property {string} unit
 * @property {string[]} metrics drawn in one chart
 * @property {Record<string, string>} titles
 * @property {Record<string, string>} formulas
 * @property {Record<string, [string, string]>} bands metric -> its lower and upper edge
 */

/** @param {Panel} panel what the URL and the page call it */
export const idOf = (panel) => /** @type {string} */ (panel.metrics[0]);

/** @param {readonly Panel[]} catalogue @param {Iterable<string>} logged names of metrics @returns {Panel[]} */
export function panelsOf(catalogue, logged) {
  const known = new Set(catalogue.flatMap((panel) => [...panel.metrics, ...Object.values(panel.bands).flat()]));
  const panels = [...catalogue];
  for (const name of logged) {
    if (known.has(name)) continue;
    known.add(name);
    panels.push({ title: name, section: "Other", pinned: false, unit: "", metrics: [name], titles: { [name]: name }, formulas: {}, bands: {} });
  }
  return panels;
}

/**
 * Is a panel worth its place: what a run of another method would log is not.
 * @param {Panel} panel @param {ReadonlySet<string>} logged names of metrics
 */
export const belongs = (panel, logged) => panel.pinned || panel.metrics.some((name) => logged.has(name));

/**
 * Does a panel match what was typed: a regular expression over title and metric names, or plain text when it is not one.
 * @param {Panel} panel @param {string} pattern
 */
export function matches(panel, pattern) {
  const texts = [panel.title, ...panel.metrics];
  try {
    const expression = new RegExp(pattern, "i");
    return texts.some((text) => expression.test(text));
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    return texts.some((text) => text.includes(pattern));
  }
}

/**
 * The panels to show: without a pattern those that belong; with one those of them that match it or, where there are none,
 * whatever else matches, each of which says that it is not logged.
 * @param {readonly Panel[]} panels @param {string} pattern @param {ReadonlySet<string>} logged names of metrics
 */
export function chosenPanels(panels, pattern, logged) {
  const there = panels.filter((panel) => belongs(panel, logged));
  if (!pattern) return there;
  const found = there.filter((panel) => matches(panel, pattern));
  return found.length ? found : panels.filter((panel) => matches(panel, pattern));
}
