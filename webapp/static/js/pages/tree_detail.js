// One tree. Every part of the page is mounted here and hears of the one selection.
import { byId, setText } from "../core/dom.js";
import { mountStrip } from "../problems/strip.js";
import { mountBranching } from "../tree/branching.js";
import { mountFrame } from "../tree/frame.js";
import { openTree } from "../tree/page.js";
import { mountTreeReading } from "../tree/reading.js";
import { mountStage } from "../tree/stage.js";
import { mountVerifying } from "../tree/verifying.js";

const root = byId("tree-layout");

try {
  const page = await openTree(root);
  mountStage(page);
  const probesShown = mountBranching(page);
  const verifyingShown = mountVerifying(page.treeId, () => page.selection.name);
  mountTreeReading(page, () => {
    void probesShown();
    void verifyingShown();
  });
  mountStrip(page);
  mountFrame(page);
  root.dataset.ready = "";
} catch (error) {
  if (!(error instanceof Error)) throw error;
  // The outline and the node below are the server's and stay as they are.
  const banner = byId("tree-problem");
  byId("icicle-box").hidden = true;
  banner.hidden = false;
  setText(banner, `The picture of this tree cannot be drawn. ${error.message}`);
}

// The list shows this tree, without scrolling the page.
const pane = document.querySelector(".tree-list-pane");
const here = pane?.querySelector("[aria-current]");
if (pane instanceof HTMLElement && here instanceof HTMLElement) pane.scrollTop = Math.max(0, here.offsetTop - pane.clientHeight / 2);
