// The tabs of a run that are plain pages: only header and status line are live.
import { data } from "../core/dom.js";
import { RunHead } from "../live/head.js";
import { Session } from "../live/session.js";

const state = /** @type {RunState} */ (data("run-state"));
const head = new RunHead();
const session = new Session(
  {
    onChange: () => {
      const feed = session.feeds.get(state.id);
      if (feed?.state) head.show(feed.state);
      const note = document.getElementById("newer-events");
      if (note && feed?.marks.length) note.hidden = false;
    },
  },
  { curves: false },
);
void session.follow(state.id, state);
