// Shapes that cross the wire or several modules. Types only: nothing of this exists at run time, and no module imports it.

/** A number of a metric; NaN and the infinities travel as words. */
type WireNumber = number | { v: null; k: "nan" | "inf" | "-inf" };

interface RunState {
  id: number;
  name: string;
  status: RunStatus;
  reason: string;
  step: number;
  steps_total: number;
  phase: string;
  phase_done: number;
  phase_total: number;
  last_seq: number;
  heartbeat_age_s: number | null;
  eta_s: number | null;
  worker: string;
  stop_requested: boolean;
  latest: Record<string, number | null>;
}
type RunStatus = "queued" | "starting" | "running" | "stopping" | "recovering" | "succeeded" | "stopped" | "failed" | "cancelled";

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
  | { type: "subscribed"; run: number; last_seq: number }
  | { type: "subscribed"; project: string }
  | { type: "frame"; run: number; first_seq: number; last_seq: number; events: WireEvent[]; state: RunState }
  | { type: "state"; run: number; state: RunState }
  | { type: "resync"; run: number; last_seq: number }
  | { type: "summary"; project: string; runs: RunState[] }
  | { type: "ping" }
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

/** Columns of one tree, breadth-first, as they come from `/api/v1/trees/<id>/columns`. */
interface TreeColumns {
  n: number;
  parent: Int32Array;
  n_leaves: Int32Array;
  tokens: Int32Array;
  /** Of a leaf: how many sampled answers ended in just this one. */
  copies: Int32Array;
  /** Of a search; 0 elsewhere. */
  visits: Int32Array;
  value: Float32Array;
  /** NaN: no credit. */
  advantage: Float32Array;
  entropy: Float32Array;
  logprob: Float32Array;
  verdict: Uint8Array;
  finish: Uint8Array;
  credit_state: Uint8Array;
  /** `credit`: what stands in place of a missing advantage, by credit state. */
  labels: { verdict: string[]; finish: string[]; credit_state: string[]; credit: string[] };
}

/** Where every node of an icicle lies. x runs in answers: a leaf is as wide as the answers that ended in it, mostly one. */
interface Layout {
  n: number;
  parent: Int32Array;
  depth: Uint16Array;
  leaves: Int32Array;
  /** Left edges; the right edge is x + leaves. */
  x: Int32Array;
  /** Row d holds the nodes rowStart[d] .. rowStart[d+1]-1, from left to right. */
  rowStart: Int32Array;
  /** First child, or -1; the children of a node are contiguous. */
  firstChild: Int32Array;
  nChildren: Int32Array;
  /** The leaf that lies at x. */
  leafAt: Int32Array;
  maxDepth: number;
}
/** The part of the tree in the window, in leaves. */
interface View {
  x0: number;
  x1: number;
}
/** A rectangle to paint: one node, or a run of nodes narrower than a pixel. Pixels from the left edge of the canvas. */
interface Box {
  from: number;
  /** Inclusive. */
  to: number;
  left: number;
  right: number;
}
type Signal = "advantage" | "value" | "verdict" | "entropy";
type Theme = "light" | "dark";

/** What every part of a tree's page is mounted with (`tree/page.js`). */
interface TreePage {
  root: HTMLElement;
  treeId: string;
  columns: TreeColumns;
  layout: Layout;
  /** The one selection: `subscribe`, `choose`, `chooseName`, `node`, `name`. */
  selection: import("./tree/selection.js").Selection;
  colouring: import("./tree/page.js").Colouring;
  /** `add` puts a key of yours beside the others, and on the list that `?` shows. */
  shortcuts: import("./tree/shortcuts.js").Shortcuts;
  /** Right answers below each node, and all of them. */
  correct: Int32Array;
  answers: Int32Array;
  /** A node as a screen reader hears it. */
  inWords: (node: number) => string;
  /** The start of a node's text, or "". */
  textOf: (node: number) => string;
}

/** Not in TypeScript's own library yet. */
interface TrustedTypePolicyFactory {
  createPolicy(name: string, rules: { createHTML: (html: string) => string }): { createHTML(html: string): string };
}
interface Window {
  trustedTypes?: TrustedTypePolicyFactory;
}
