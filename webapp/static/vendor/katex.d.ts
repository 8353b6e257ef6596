// The one part of KaTeX that is called, by hand: its own types name much more.
declare const katex: { render(tex: string, element: HTMLElement, settings?: Record<string, unknown>): void };
export default katex;
