// The form of a verification, and what is said of one. Pure.

/** What the form says, as the API takes it: of all kinds' knobs those of the chosen one. @param {FormData} form */
export function asked(form) {
  const kind = form.get("kind");
  if (kind === null) return {};
  const own = [...form].filter(([name]) => name.startsWith(`${kind}.`)).map(([name, value]) => [name.slice(`${kind}.`.length), value]);
  return { verifier: { kind, ...Object.fromEntries(own) } };
}

/** What a screen reader hears of one that has ended. @param {{verdict: string | null, differs: boolean | null, recorded: string, words: string}} state */
export const spoken = ({ verdict, differs, recorded, words }) =>
  [verdict && `Verified again: ${verdict}${differs ? `, recorded ${recorded}` : ""}.`, words].filter(Boolean).join(" ");
