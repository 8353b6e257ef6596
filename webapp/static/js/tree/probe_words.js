// A probe in words, and the form that asks for one. Pure.

/** @param {{n_done: number, n: number, n_correct: number, n_scored: number, is_active: boolean, status: string, words: string}} state */
export function spoken({ n_done, n, n_correct, n_scored, is_active, status, words }) {
  const score = n_scored ? `, ${n_correct} of ${n_scored} correct` : "";
  if (is_active) return n_done ? `${n_done} of ${n} continuations are here${score}.` : words;
  return status === "done" ? `${n_done} continuations are here${score}.` : words;
}

/** What the form says, as the API takes it. @param {FormData} form */
export function asked(form) {
  const text = (/** @type {string} */ name) => String(form.get(name) ?? "").trim();
  // What is no number is sent as it is: the server says what is wrong with it.
  const number = (/** @type {string} */ name) => (text(name) === "" || Number.isNaN(Number(text(name))) ? text(name) : Number(text(name)));
  return {
    policy_version: number("policy_version"),
    prefix: String(form.get("beginning") ?? ""),
    n: number("n"),
    temperature: number("temperature"),
    max_tokens: number("max_tokens"),
    verify: form.get("verify") !== null,
    seed: text("seed") === "" ? null : number("seed"),
    idempotency_key: text("idempotency_key"),
  };
}
