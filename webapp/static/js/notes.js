// `a` opens the form beside the node that is shown, wherever the page is.
import { onKeys } from "./core/keys.js";

onKeys({
  a: () => {
    const form = document.getElementById("note-add");
    if (!(form instanceof HTMLDetailsElement)) return;
    form.open = true;
    form.scrollIntoView({ block: "nearest" });
    document.getElementById("note-text")?.focus();
  },
});
