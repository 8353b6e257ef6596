// What all parts of a tree's page share: the tree's columns, who is whose child, the selection, the colours, the keys.
import { json, request } from "../core/api.js";
import { byId, data } from "../core/dom.js";
import { read, write } from "../core/url_state.js";
import { announce } from "../core/announce.js";
import { Colouring } from "./colouring.js";
import { decodeColumns } from "./columns.js";
import { place, shapeOf } from "./layout.js";
import { Selection } from "./selection.js";
import { Shortcuts } from "./shortcuts.js";
import { probeWords, spoken } from "./signals.js";
import { TextStarts } from "./texts.js";
import { countBelow, nameOf, nodeNamed } from "./walk.js";

/** @param {HTMLElement} root with `data-tree`, `data-columns`, `data-node`, `data-colour` @returns {Promise<TreePage>} */
export async function openTree(root) {
  const treeId = root.dataset.tree ?? "";
  const columns = decodeColumns(await (await request(root.dataset.columns ?? "")).arrayBuffer());
  const tree = place(shapeOf(columns.n_children), { copies: columns.copies });
  const selection = new Selection(tree, root.dataset.node ?? "0", { write: (changes, how) => write({ probe: null, ...changes }, how), now: () => performance.now() });
  const correct = countBelow(tree, columns.verdict, columns.labels.verdict.indexOf("correct"));
  const pruned = columns.labels.finish.indexOf("pruned");
  // What a search gave up is no answer.
  const givenUp = columns.finish.includes(pruned) ? countBelow(tree, columns.finish, pruned) : null;
  const answers = givenUp ? tree.leaves.map((all, node) => all - /** @type {number} */ (givenUp[node])) : tree.leaves;
  const texts = new TextStarts((blocks) => json(`/trees/${treeId}/texts?blocks=${blocks.join(",")}`), (run, milliseconds) => window.setTimeout(run, milliseconds));
  const inWords = (/** @type {number} */ node) => [spoken(columns, node, nameOf(tree, node), /** @type {number} */ (correct[node]), /** @type {number} */ (answers[node])), probeWords(probed.get(node)?.length)].filter(Boolean).join(", ");

  /** @type {TreePage["probed"]} */
  const probed = new Map();
  for (const [name, probes] of Object.entries(/** @type {Record<string, DrawnProbe[]>} */ (data("probed-data") ?? {}))) if (nodeNamed(tree, name) >= 0) probed.set(nodeNamed(tree, name), probes);

  selection.subscribe(({ name, node }) => {
    root.dataset.node = name;
    document.title = document.title.replace(/node \S+/, `node ${name}`);
    announce(inWords(node));
  });
  return {
    root, treeId, columns, layout: tree, selection, correct, answers, inWords, texts, probed,
    colouring: new Colouring(columns, tree, root),
    shortcuts: new Shortcuts([byId("icicle"), byId("graph")]),
    textOf: (node) => texts.of(node), continuation: read("probe") ?? "",
  };
}
