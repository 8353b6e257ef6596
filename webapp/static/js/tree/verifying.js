// "Verify again" in the inspector: what it takes is loaded where a node is an answer.

/** @param {string} treeId @param {() => string} nodeName @returns {() => Promise<void>} what to call when a node's HTML is in place */
export function mountVerifying(treeId, nodeName) {
  /** @type {Promise<() => void> | undefined} */
  let loaded;
  return async () => {
    if (!loaded && !document.getElementById("verifier-part")) return;
    loaded ??= import("./verify.js").then(({ mountVerifier }) => mountVerifier(treeId, nodeName));
    (await loaded)();
  };
}
