// Reading and asking over HTTP. Errors keep the server's sentence.

export class ApiError extends Error {
  /** @param {number} status @param {string} detail */
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** @param {string} path below `/api/v1` @param {RequestInit} [init] @returns {Promise<Response>} */
export async function request(path, init = {}) {
  let response;
  try {
    response = await fetch(`/api/v1${path}`, { credentials: "same-origin", ...init });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "The server could not be reached. What is shown stays; try again in a moment.");
  }
  if (response.ok) return response;
  let detail = `The server answered ${response.status}.`;
  if (response.headers.get("content-type")?.includes("json")) {
    const problem = await response.json();
    if (problem.detail) detail = problem.detail;
  }
  throw new ApiError(response.status, detail);
}

/** @param {string} path @param {RequestInit} [init] @returns {Promise<any>} Its shape is the API's word. */
export const json = async (path, init) => (await request(path, init)).json();

/** @param {string} path @param {unknown} body @param {AbortSignal} [signal] @returns {Promise<any>} */
export function post(path, body, signal) {
  const token = document.querySelector("input[name=csrfmiddlewaretoken]");
  const headers = { "content-type": "application/json", "x-csrftoken": token instanceof HTMLInputElement ? token.value : "" };
  return json(path, { method: "POST", headers, body: JSON.stringify(body), ...(signal ? { signal } : {}) });
}
