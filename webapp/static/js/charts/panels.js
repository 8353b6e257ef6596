// Which panels there are, and which metrics each shows. Pure.

/** @typedef {{id: string, title: string, metrics: string[], unit: string, formula: string, section: string}} Panel */

/** The six to look at first. */
const FIRST = [
  ["reward", "Reward", ["reward/mean"]],
  ["pass1", "pass@1, held out", ["eval/pass1_sampled", "eval/pass1_greedy"]],
  ["length", "Response length", ["sampling/response_tokens"]],
  ["entropy", "Entropy", ["policy/entropy"]],
  ["speed", "Tokens per second", ["speed/tokens_per_second"]],
  ["zero-variance", "Zero-variance groups", ["credit/zero_variance_share"]],
];

/**
 * The first six, then the rest of the catalogue by area, then what the run logs and no catalogue knows.
 * @param {{title: string, metrics: Metric[]}[]} catalogue @param {Iterable<string>} logged names
 * @returns {Panel[]}
 */
export function panelsOf(catalogue, logged) {
  const known = new Map(catalogue.flatMap((area) => area.metrics.map((metric) => [metric.name, metric])));
  const shown = new Set();
  /** @type {Panel[]} */
  const panels = [];
  for (const [id, title, metrics] of /** @type {[string, string, string[]][]} */ (FIRST)) {
    for (const name of metrics) shown.add(name);
    const metric = known.get(/** @type {string} */ (metrics[0]));
    const formula = metrics.map((name) => known.get(name)?.formula).filter(Boolean).join("; ");
    panels.push({ id, title, metrics, unit: metric?.unit ?? "", formula, section: "Learning" });
  }
  for (const { title, metrics } of catalogue) {
    for (const metric of metrics) {
      if (shown.has(metric.name) || isEdge(metric.name, known)) continue;
      shown.add(metric.name);
      panels.push({ id: metric.name, title: metric.title, metrics: [metric.name], unit: metric.unit, formula: metric.formula, section: title });
    }
  }
  for (const name of logged) {
    if (shown.has(name) || isEdge(name, known)) continue;
    shown.add(name);
    panels.push({ id: name, title: name, metrics: [name], unit: "", formula: "", section: "Other" });
  }
  return panels;
}

/** Interval ends are drawn as the band of their metric. @param {string} name @param {Map<string, Metric>} known */
const isEdge = (name, known) => /_(low|high)$/.test(name) && known.has(name.replace(/_(low|high)$/, ""));

/**
 * Panels whose title or metric matches; everything when the pattern is empty or is no regular expression.
 * @param {Panel[]} panels @param {string} pattern
 */
export function filtered(panels, pattern) {
  if (!pattern) return panels;
  let matches;
  try {
    matches = new RegExp(pattern, "i");
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    return panels.filter((panel) => [panel.title, ...panel.metrics].some((text) => text.includes(pattern)));
  }
  return panels.filter((panel) => [panel.title, ...panel.metrics].some((text) => matches.test(text)));
}
