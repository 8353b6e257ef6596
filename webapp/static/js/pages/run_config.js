// The config tab of a run: its YAML is copied with one press; everything else is the plain page.
import { announce } from "../core/announce.js";
import { byId, setText } from "../core/dom.js";
import "./run_tab.js";

const button = document.getElementById("copy-config");
button?.addEventListener("click", async () => {
  const text = byId("config-yaml");
  try {
    await navigator.clipboard.writeText(text.textContent ?? "");
    setText(button, "Copied");
  } catch {
    // Without a right to the clipboard the text is selected, ready to be copied by hand.
    getSelection()?.selectAllChildren(text);
    text.focus();
    setText(button, "Selected: copy it with the keyboard");
  }
  announce(button.textContent ?? "");
});
