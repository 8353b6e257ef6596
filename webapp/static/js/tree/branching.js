// "Branch here" on a tree's page: what it takes is loaded when someone asks for it, or when there are probes to show.

/**
 * Returns what to call when new HTML is in place.
 * @param {TreePage} page
 */
export function mountBranching(page) {
  const dialog = document.getElementById("branch-dialog"); // who may only look has none
  /** @type {Promise<{probes: import("./branch.js").Probes, open: () => Promise<void>}> | undefined} */
  let loaded;
  const parts = () =>
    (loaded ??= import("./branch.js").then(({ mountDialog, Probes }) => {
      const probes = new Probes(page.treeId, (node) => `/t/${page.treeId}/n/${node}`, page);
      return { probes, open: dialog instanceof HTMLDialogElement ? mountDialog(page, probes, dialog) : async () => {} };
    }));
  if (dialog) {
    const open = async () => (await parts()).open();
    document.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      if (!(/** @type {Element} */ (event.target).closest("a[data-branch]"))) return;
      event.preventDefault();
      void open();
    });
    page.shortcuts.add({ b: () => void open() }, "Branch here: sample continuations of the node");
  }
  page.root.addEventListener("probe-chosen", async (event) => {
    (await parts()).probes.choose(/** @type {CustomEvent<string>} */ (event).detail);
  });
  return async () => {
    if (loaded || document.querySelector("#probes:not(.probes-none)")) (await parts()).probes.shown();
  };
}
