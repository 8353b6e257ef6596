// The path reader: segments get the colour of their node, links to nodes select instead of leaving the page.

/**
 * @param {HTMLElement} reader @param {(name: string) => string | null} colourOf null: no credit
 */
export function colourSegments(reader, colourOf) {
  for (const segment of /** @type {NodeListOf<HTMLElement>} */ (reader.querySelectorAll("[data-segment]"))) {
    const fill = colourOf(segment.dataset.segment ?? "");
    segment.classList.toggle("segment-no-credit", fill === null);
    segment.style.setProperty("--bar", fill ?? "transparent");
  }
}

/** @param {(name: string) => void} go */
export function interceptNodeLinks(go) {
  document.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    const link = /** @type {Element} */ (event.target).closest("a[data-go]");
    if (!(link instanceof HTMLElement)) return;
    event.preventDefault();
    go(link.dataset.go ?? "0");
  });
}
