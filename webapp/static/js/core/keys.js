// Single-letter keys, off while someone types or holds a modifier.

/** @param {KeyboardEvent} event */
export function isTyping(event) {
  const target = event.target;
  // A field of a dialog that was just closed has the focus until the page is drawn again.
  return target instanceof HTMLElement && !target.closest("dialog:not([open])") && (target.isContentEditable || target.matches("input:not([type=checkbox], [type=radio], [type=range]), textarea, select"));
}

/** @param {Record<string, (event: KeyboardEvent) => void>} commands by `event.key` @param {EventTarget} [target] */
export function onKeys(commands, target = document) {
  target.addEventListener("keydown", (raw) => {
    const event = /** @type {KeyboardEvent} */ (raw);
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event)) return;
    const command = Object.hasOwn(commands, event.key) ? commands[event.key] : undefined;
    if (!command) return;
    event.preventDefault();
    command(event);
  });
}
