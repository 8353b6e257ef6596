// What a page knows of one run, and how a message changes it. Pure: feed, message -> feed. A message that comes twice
// changes nothing, and a message that leaves a gap is not applied: `wants` says what to ask for.

/** More points than this in one curve, and the page had better read buckets from the server again. */
export const MAX_POINTS = 6000;

/** @param {number} run @returns {Feed} */
export const emptyFeed = (run) => ({
  run, cursor: 0, serverSeq: 0, state: null, series: new Map(), marks: [], trees: new Map(), packingSeq: 0, lastAt: null, wants: "",
});

/**
 * @param {Feed} feed @param {ServerMessage | LoadedMessage} message
 * @returns {Feed} the same object when the message says nothing new about this run
 */
export function apply(feed, message) {
  if (!("run" in message) || message.run !== feed.run) return feed;
  switch (message.type) {
    case "subscribed":
      return { ...feed, serverSeq: Math.max(feed.serverSeq, message.last_seq), wants: feed.wants === "resubscribe" ? "" : feed.wants };
    case "state":
      return withState(feed, message.state);
    case "resync":
      return message.last_seq <= feed.cursor ? feed : { ...feed, serverSeq: Math.max(feed.serverSeq, message.last_seq), wants: "reload" };
    case "loaded":
      return loaded(feed, message);
    case "frame":
      return frame(feed, message);
    default:
      return feed;
  }
}

/** @param {Feed} feed @param {RunState} state @returns {Feed} */
function withState(feed, state) {
  if (feed.state && state.last_seq < feed.state.last_seq) return feed; // an older one, come late
  return { ...feed, state, serverSeq: Math.max(feed.serverSeq, state.last_seq) };
}

/** @param {Feed} feed @param {LoadedMessage} message @returns {Feed} */
function loaded(feed, message) {
  // The page may have got further while the answer was on its way.
  if (message.last_seq < feed.cursor) return feed.wants === "reload" ? { ...feed, wants: "" } : feed;
  const series = new Map(message.series.map((wire) => [wire.name, fromWire(wire)]));
  return { ...feed, series, cursor: message.last_seq, serverSeq: Math.max(feed.serverSeq, message.last_seq), wants: "" };
}

/** @param {Feed} feed @param {Extract<ServerMessage, {type: "frame"}>} message @returns {Feed} */
function frame(feed, message) {
  if (message.last_seq <= feed.cursor) return withState(feed, message.state); // known already
  if (message.first_seq > feed.cursor + 1) {
    // A gap. While a reload is awaited it is expected; otherwise ask again from where we stand.
    return { ...withState(feed, message.state), wants: feed.wants || "resubscribe" };
  }
  const series = new Map(feed.series);
  const trees = new Map(feed.trees);
  /** Series that are ours to change in this call. @type {Set<string>} */
  const copied = new Set();
  let { marks, packingSeq } = feed;
  let lastAt = feed.lastAt;
  for (const event of message.events) {
    if (event.seq <= feed.cursor) continue;
    lastAt = event.at;
    if (event.kind === "metrics" && event.step !== null) {
      for (const [name, value] of Object.entries(event.values ?? {})) {
        if (!copied.has(name)) {
          series.set(name, copyOf(series.get(name) ?? emptySeries(name)));
          copied.add(name);
        }
        put(/** @type {Series} */ (series.get(name)), event.step, value);
      }
    } else if (event.kind === "tree" && event.step !== null) {
      const { n, value } = trees.get(event.step) ?? { n: 0, value: null };
      const root = event.tree?.value ?? null;
      trees.set(event.step, { n: n + 1, value: root === null ? value : value === null ? root : value + (root - value) / (n + 1) });
    } else if (event.kind === "started" && event.step !== null) {
      // A new attempt goes on from `step`: what an earlier one did after that is superseded.
      for (const [name, curve] of series) {
        if (lastStep(curve) > event.step) {
          series.set(name, upTo(curve, event.step));
          copied.add(name);
        }
      }
      for (const step of [...trees.keys()]) if (step > event.step) trees.delete(step);
      if (event.step > 0) marks = [...marks, { seq: event.seq, step: event.step, kind: "started", text: `resumed from step ${event.step}` }];
    } else if (event.kind === "packing_checked") {
      packingSeq = event.seq;
    } else if (event.kind === "checkpoint" && event.step !== null) {
      marks = [...marks, { seq: event.seq, step: event.step, kind: "checkpoint", text: `checkpoint of step ${event.step}` }];
    } else if (event.kind === "status" && event.step !== null) {
      marks = [...marks, { seq: event.seq, step: event.step, kind: "status", text: event.reason || event.status || "status" }];
    }
  }
  const long = [...copied].some((name) => /** @type {Series} */ (series.get(name)).step.length > MAX_POINTS);
  const next = { ...feed, series, trees, marks, packingSeq, lastAt, cursor: message.last_seq };
  return { ...withState(next, message.state), wants: long ? "reload" : feed.wants === "resubscribe" ? "" : feed.wants };
}

/** @param {string} name @returns {Series} */
const emptySeries = (name) => ({ name, step: [], value: [], min: [], max: [], n: [], nonfinite: [], bucketed: false });

/** @param {Series} curve @returns {Series} */
const copyOf = (curve) => ({
  ...curve,
  step: curve.step.slice(),
  value: curve.value.slice(),
  min: curve.min.slice(),
  max: curve.max.slice(),
  n: curve.n.slice(),
  nonfinite: curve.nonfinite.slice(),
});

/** @param {Series} curve */
const lastStep = (curve) => Math.max(curve.step.at(-1) ?? -1, curve.nonfinite.at(-1)?.step ?? -1);

/** @param {Series} curve @param {number} step @returns {Series} */
function upTo(curve, step) {
  const count = curve.step.filter((at) => at <= step).length;
  return {
    ...curve,
    step: curve.step.slice(0, count),
    value: curve.value.slice(0, count),
    min: curve.min.slice(0, count),
    max: curve.max.slice(0, count),
    n: curve.n.slice(0, count),
    nonfinite: curve.nonfinite.filter((point) => point.step <= step),
  };
}

/** Put one value at its step; a value that is there already is replaced. @param {Series} curve @param {number} step @param {WireNumber} value */
function put(curve, step, value) {
  let index = curve.step.length;
  while (index > 0 && /** @type {number} */ (curve.step[index - 1]) >= step) index--;
  const there = curve.step[index] === step ? 1 : 0;
  curve.nonfinite = curve.nonfinite.filter((point) => point.step !== step);
  if (typeof value === "number") {
    curve.step.splice(index, there, step);
    curve.value.splice(index, there, value);
    curve.min.splice(index, there, value);
    curve.max.splice(index, there, value);
    curve.n.splice(index, there, 1);
  } else {
    for (const column of [curve.step, curve.value, curve.min, curve.max, curve.n]) column.splice(index, there);
    curve.nonfinite.push({ step, k: value.k });
    curve.nonfinite.sort((a, b) => a.step - b.step);
  }
}

/** @param {WireSeries} wire @returns {Series} */
export function fromWire(wire) {
  const curve = { ...emptySeries(wire.name), bucketed: wire.bucketed, nonfinite: wire.nonfinite.slice() };
  wire.step.forEach((step, i) => {
    const value = wire.value[i];
    if (value == null) return; // a bucket that holds nothing finite: its ticks are in `nonfinite`
    curve.step.push(step);
    curve.value.push(value);
    curve.min.push(wire.min[i] ?? value);
    curve.max.push(wire.max[i] ?? value);
    curve.n.push(wire.n[i] ?? 1);
  });
  return curve;
}
