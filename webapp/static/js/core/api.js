// Reading and asking over HTTP. Errors keep the server's sentence. What changes something is refused while the server is
// known to be away, instead of being sent whenever it comes back.
import { whyUnreachable } from "./reach.js";

export const PATIENCE_SECONDS = 20;

export class ApiError extends Error {
  /** @param {number} status 0: no answer @param {string} detail */
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** @param {string} path below `/api/v1` @param {RequestInit} [init] @returns {Promise<Response>} */
export async function request(path, init = {}) {
  const late = AbortSignal.timeout(1000 * PATIENCE_SECONDS);
  const signal = init.signal ? AbortSignal.any([init.signal, late]) : late;
  try {
    const response = await fetch(`/api/v1${path}`, { credentials: "same-origin", ...init, signal });
    if (response.ok) return response;
    let detail = `The server answered ${response.status}.`;
    if (response.headers.get("content-type")?.includes("json")) {
      const problem = await response.json();
      if (problem.detail) detail = problem.detail;
    }
    throw new ApiError(response.status, detail);
  } catch (error) {
    if (error instanceof ApiError || init.signal?.aborted) throw error;
    if (late.aborted) throw new ApiError(0, `The server did not answer within ${PATIENCE_SECONDS} s.`);
    throw new ApiError(0, "The server could not be reached. What is shown stays; try again in a moment.");
  }
}

/** @param {string} path @param {RequestInit} [init] @returns {Promise<any>} Its shape is the API's word. */
export const json = async (path, init) => (await request(path, init)).json();

/** @param {string} path @param {unknown} body @param {AbortSignal} [signal] @returns {Promise<any>} */
export async function post(path, body, signal) {
  const away = whyUnreachable();
  if (away) throw new ApiError(0, `${away} Nothing was sent or queued; try again when the page is live.`);
  const token = document.querySelector("input[name=csrfmiddlewaretoken]");
  const headers = { "content-type": "application/json", "x-csrftoken": token instanceof HTMLInputElement ? token.value : "" };
  try {
    return await json(path, { method: "POST", headers, body: JSON.stringify(body), ...(signal ? { signal } : {}) });
  } catch (error) {
    if (error instanceof ApiError && error.status === 0) throw new ApiError(0, `${error.message} It may have arrived all the same: look before you send it again.`);
    throw error;
  }
}
