// Shapes that cross the wire or several modules. Types only: nothing of this exists at run time, and no module imports it.

/** A number of a metric; NaN and the infinities travel as words. */
type WireNumber = number | { v: null; k: "nan" | "inf" | "-inf" };

interface RunState {
  id: number;
  name: string;
  status: RunStatus;
  /** The word and colour for it. */
  shown: ShownStatus;
  reason: string;
  /** The reason as it goes on from the word of `shown`. */
  told: string;
  step: number;
  steps_total: number;
  phase: string;
  phase_done: number;
  phase_total: number;
  /** The three as people read them: "sampling 602 of 1,344 segments". */
  phase_words: string;
  last_seq: number;
  heartbeat_age_s: number | null;
  /** Seconds since the trainer was last heard of. */
  progress_age_s?: number | null;
  /** Alive, but without progress for too long. */
  stalled: boolean;
  /** Its newest steps trained no token. */
  is_idle: boolean;
  eta_s: number | null;
  worker: string;
  /** How what somebody asked for is told: `asked` 2 s ago · `words`. */
  wish: { kind: "pause" | "stop" | "kill"; by: string; is_seen: boolean; asked: string; words: string } | null;
  wish_age_s: number | null;
  /** So long a trainer that does not answer to it is still waited for. */
  wish_ends_s?: number | null;
  /** What may be asked of the run now. */
  actions: ("pause" | "resume" | "stop" | "stop-now" | "retry")[];
  latest: Record<string, number | null>;
}
type ShownStatus = RunStatus | "pausing" | "stalled";
type RunStatus = "queued" | "starting" | "running" | "stopping" | "recovering" | "paused" | "succeeded" | "stopped" | "failed" | "cancelled";

interface TreeRow {
  id: number;
  step: number;
  index: number;
  problem_id: string;
  prompt: string;
  value: number | null;
  n_nodes: number;
  n_leaves: number;
  n_correct: number;
  depth: number;
  tokens: number;
  tokens_flat: number;
  advantage_min: number | null;
  advantage_max: number | null;
  zero_variance_share: number | null;
  mean_entropy: number | null;
  icicle?: Icicle | null;
}
/** A whole small tree for a list row. */
interface Icicle {
  parent: number[];
  advantage: (number | null)[];
  /** Credit states, as `trainer.tree.CreditState` numbers them. */
  state: number[];
  verdict: number[];
  /** Only where no node has an advantage. */
  value?: (number | null)[];
  /** Only where a leaf stands for several equal answers. */
  copies?: number[];
  /** Only where the tree is too large to draw all of it. */
  rows_left_out?: number;
}
/** How a node without a number is drawn. */
type Look = "credit" | "plain" | "context" | "hatched";

interface WireEvent {
  seq: number;
  kind: "status" | "started" | "metrics" | "tree" | "packing_checked" | "checkpoint" | "log" | "finished";
  step: number | null;
  at: number;
  epoch: number;
  values?: Record<string, WireNumber>;
  tree?: TreeRow;
  status?: RunStatus;
  reason?: string;
  level?: string;
  message?: string;
  outcome?: string;
}

interface WireSeries {
  name: string;
  n_points: number;
  bucketed: boolean;
  step: number[];
  value: (number | null)[];
  min: (number | null)[];
  max: (number | null)[];
  n: number[];
  nonfinite: { step: number; k: string }[];
}

type ServerMessage =
  | { type: "subscribed"; run: number; last_seq: number; now: number }
  | { type: "subscribed"; project: string; now: number }
  | { type: "frame"; run: number; first_seq: number; last_seq: number; events: WireEvent[]; state: RunState }
  | { type: "state"; run: number; state: RunState }
  | { type: "resync"; run: number; last_seq: number }
  | { type: "summary"; project: string; runs: RunState[] }
  | { type: "ping"; now: number }
  | { type: "database"; answers: boolean }
  | { type: "error"; code: string; message: string };
/** What a page feeds in itself, after it read the curves over HTTP. */
type LoadedMessage = { type: "loaded"; run: number; last_seq: number; series: WireSeries[] };

/** One curve as the page holds it. Steps rise; a value that is not finite stands in `nonfinite` instead. */
interface Series {
  name: string;
  step: number[];
  value: number[];
  /** Extremes of each bucket; equal to `value` where nothing was bucketed. */
  min: number[];
  max: number[];
  /** Points behind each entry. */
  n: number[];
  nonfinite: { step: number; k: string }[];
  bucketed: boolean;
}

interface Mark {
  seq: number;
  step: number;
  kind: "checkpoint" | "started" | "status";
  text: string;
}

/** What the page knows of one run. Never changed in place. */
interface Feed {
  run: number;
  /** Events 1..cursor are in here. */
  cursor: number;
  /** The newest event number the server spoke of. */
  serverSeq: number;
  state: RunState | null;
  series: ReadonlyMap<string, Series>;
  marks: readonly Mark[];
  /** Trees stored per step since the page was opened: how many, and the mean value of their roots. */
  trees: ReadonlyMap<number, { n: number; value: number | null }>;
  /** The newest event that told what packed training's check found; 0 while the page has seen none. */
  packingSeq: number;
  /** Unix seconds at which the newest event happened, by the server's clock. */
  lastAt: number | null;
  /** What the page has to do before the feed can go on. */
  wants: "" | "resubscribe" | "reload";
}

interface Metric {
  name: string;
  title: string;
  unit: string;
  formula: string;
  better: string;
}

type Counts = Uint8Array | Uint16Array | Uint32Array | Int32Array;

/** Columns of one tree, breadth-first, as they come from `/api/v1/trees/<id>/columns`. */
interface TreeColumns {
  n: number;
  n_children: Counts;
  tokens: Counts;
  value: Float32Array;
  /** NaN: no credit. */
  advantage: Float32Array;
  /** Means over the segment's tokens, to three significant digits; NaN where it has none. */
  readonly entropy: Float32Array;
  readonly logprob: Float32Array;
  verdict: Uint8Array;
  finish: Uint8Array;
  credit_state: Uint8Array;
  /** Of a leaf: how many sampled answers ended in just this one. Null: no leaf stands for several. */
  copies: Counts | null;
  /** Null: nothing was searched. */
  visits: Counts | null;
  /** |sampling - training logprob| of a token, mean over the segment; null: not recorded. */
  readonly mismatch: Float32Array | null;
  policyVersion: number;
  /** Where the value falls most, if one edge explains the failures. */
  cliff: { node: number; drop: number; probability: number } | null;
  /** `credit`: what stands in place of a missing advantage, by credit state. */
  labels: { verdict: string[]; finish: string[]; credit_state: string[]; credit: string[] };
}

/** Who is whose child, breadth-first. */
interface Shape {
  n: number;
  parent: Int32Array;
  /** First child, or -1; the children of a node are contiguous. */
  firstChild: Int32Array;
  nChildren: Counts;
  depth: Uint16Array;
  /** Row d holds the places rowStart[d] .. rowStart[d+1]-1, from left to right. */
  rowStart: Int32Array;
  maxDepth: number;
}
/** Where every node of an icicle lies. */
interface Layout extends Shape {
  /** Sampled answers at or below each node. */
  leaves: Int32Array;
  /** In units of the chosen width; `leaves` itself where width is answers. */
  width: Int32Array | Float64Array;
  /** Left edges; the right edge is x + width. */
  x: Int32Array | Float64Array;
  /** Width of the root. */
  total: number;
  /** The node at each place; null: sampling order, where place and node are the same number. */
  rowNodes: Int32Array | null;
  /** The place of each node. */
  places: Int32Array | null;
  /** The leaves from left to right. */
  leafOrder: Int32Array;
}
type Width = "leaves" | "tokens" | "equal" | "loss";
/** The part of the tree in the window, in the layout's units. */
interface View {
  x0: number;
  x1: number;
}
/** A rectangle to paint: one node, or a run of nodes narrower than a pixel. Pixels from the left edge of the canvas. */
interface Box {
  /** Places. */
  from: number;
  /** Inclusive. */
  to: number;
  left: number;
  right: number;
}
type Signal = "advantage" | "value" | "change" | "verdict" | "entropy" | "logprob" | "mismatch" | "policy" | "tokens" | "difference" | "none";
/** Where the ends of an advantage's scale come from. */
type ScaleChoice = "run" | "tree" | "fixed" | "symlog";
interface ColourScale {
  low: number;
  limit: number;
  symmetric: boolean;
  symlog: boolean;
  level: (value: number) => number;
  place: (value: number) => number;
  at: (place: number) => number;
  fill: (level: number) => string;
  ink: (level: number) => string;
}
interface ColourSignal {
  signal: Signal;
  /** [N]; NaN: the node has no such number. */
  values: Float32Array;
  scale: ColourScale;
  limit: number;
  /** Where the ends of the scale come from, in words. */
  source: string;
}
type Theme = "light" | "dark";

/** One request for continuations, as pictures draw it. */
interface DrawnProbe {
  id: number;
  /** A letter for each continuation that is there, by number: c, i, u, t, e, n. */
  verdicts: string;
  /** How many may still come. */
  pending: number;
}

/** What a picture of a tree is painted from. */
interface Scene {
  columns: TreeColumns;
  layout: Layout;
  signal: ColourSignal;
  /** Start of a node's text, or "" while it is on its way. */
  textOf: (node: number) => string;
  /** What a search in the tree found. */
  hits: import("./tree/found.js").Found | null;
  /** The node below the value cliff; -1: there is none. */
  cliff: number;
  /** The probes that start at a node. They are drawn apart from the tree, and counted nowhere. */
  probed?: ReadonlyMap<number, readonly DrawnProbe[]>;
  /** The continuation that is read, as `12.3`; "": none. */
  continuation?: string;
}

/** What every part of a tree's page is mounted with (`tree/page.js`). */
interface TreePage {
  root: HTMLElement;
  treeId: string;
  columns: TreeColumns;
  layout: Layout;
  /** The one selection: `subscribe`, `choose`, `chooseName`, `node`, `name`. */
  selection: import("./tree/selection.js").Selection;
  colouring: import("./tree/colouring.js").Colouring;
  /** `add` puts a key of yours beside the others, and on the list that `?` shows. */
  shortcuts: import("./tree/shortcuts.js").Shortcuts;
  /** Right answers below each node, and all of them. */
  correct: Int32Array;
  answers: Int32Array;
  /** A node as a screen reader hears it. */
  inWords: (node: number) => string;
  texts: import("./tree/texts.js").TextStarts;
  /** The probes that start at a node, by its index, oldest first; the element `root` hears `probed` when something of them changed. */
  probed: Map<number, DrawnProbe[]>;
  /** The continuation that is read, as `12.3`: number 3 of probe 12; "": none. */
  continuation: string;
  /** The start of a node's text; "" while it is on its way. */
  textOf: (node: number) => string;
}

/** Not in TypeScript's own library yet. */
interface TrustedTypePolicyFactory {
  createPolicy(name: string, rules: { createHTML: (html: string) => string }): { createHTML(html: string): string };
}
interface Window {
  trustedTypes?: TrustedTypePolicyFactory;
}

type Shade = "none" | "advantage" | "entropy" | "logprob" | "mismatch" | "ratio" | "mask";
/** A segment of a path: its tokens are `start` to `start + count`, its text in UTF-16 units as `end` counts them. */
interface TokenSegment {
  node: string;
  start: number;
  count: number;
  text: string;
  /** False: its tokens do not make its text, or their texts were not recorded; every `end` is then 0. */
  isPlaced: boolean;
  isGiven: boolean;
  /** What its tokens took; null: none. */
  advantage: number | null;
  words: string;
}
/** The tokens of a path, as they come from `/api/v1/trees/<id>/paths/<name>/tokens`. */
interface PathTokens {
  n: number;
  topK: number;
  segments: TokenSegment[];
  /** The text of a token alone, by id. */
  pieces: Map<number, string>;
  id: Int32Array;
  end: Uint32Array;
  logprob: Float32Array;
  entropy: Float32Array;
  trained: Uint8Array;
  mismatch: Float32Array | null;
  log_ratio: Float32Array | null;
  clip: Uint8Array | null;
  top_id: Int32Array | null;
  top_logprob: Float32Array | null;
  advantageLimit: number;
}
