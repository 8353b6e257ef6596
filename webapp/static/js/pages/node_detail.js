// One node as a page of its own: the server's text, with tokens and formulas on top.
import { byId } from "../core/dom.js";
import { onKeys } from "../core/keys.js";
import { mountReading } from "../tree/reading.js";

const page = byId("node-page");
const { commands } = mountReading({ treeId: page.dataset.tree ?? "", nodeName: () => page.dataset.node ?? "0" });
onKeys(commands);
