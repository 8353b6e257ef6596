// The page of one node's probes: they come in by themselves, and are read one by one.
import { byId } from "../core/dom.js";
import { Probes } from "../tree/branch.js";

const { tree = "", node = "0" } = byId("branch-page").dataset;
new Probes(tree, () => `/t/${tree}/branch${location.search || `?n=${node}`}`).shown();
