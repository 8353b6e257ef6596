// The page of an outage asks whether it is over, and then for what was wanted.
import { byId } from "../core/dom.js";

const milliseconds = 1000 * Number(byId("outage").dataset.retry);

async function ask() {
  try {
    const answer = await fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(milliseconds) });
    if (answer.ok) return location.reload();
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    // The server is away, too; it is asked again.
  }
  again();
}
// Not all pages at the same moment.
const again = () => setTimeout(ask, milliseconds * (0.6 + 0.4 * Math.random()));
again();
