// One node as a page of its own: the server's text, with tokens and formulas on top.
import { byId } from "../core/dom.js";
import { onKeys } from "../core/keys.js";
import { mountReading } from "../tree/reading.js";
import { mountVerifying } from "../tree/verifying.js";

const page = byId("node-page");
const { tree = "", node = "0" } = page.dataset;
const { commands } = mountReading({ treeId: tree, nodeName: () => node });
void mountVerifying(tree, () => node)();
onKeys(commands);
