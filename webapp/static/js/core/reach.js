// Whether anything can be sent now. A page with a live connection knows; on others only sending tells.

/** @type {() => string | null} */
let known = () => null;

/** @param {() => string | null} whyNot a sentence, or null while the server is there */
export const tellReach = (whyNot) => {
  known = whyNot;
};

/** Why nothing can be sent now, as a sentence; null when it may be tried. @returns {string | null} */
export const whyUnreachable = () => (navigator.onLine === false ? "This computer is offline." : known());
