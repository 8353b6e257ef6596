"""The same over HTTP, for pages that get no socket."""

from __future__ import annotations

from typing import Annotated

from django.http import Http404, HttpRequest, HttpResponse
from ninja import Router
from pydantic import Field

from webapp.limits import SOCKET_RESYNC_EVENTS
from webapp.live.catch_up import encode, since
from webapp.live.feeds import frame_text
from webapp.projects.access import get_run

router = Router(tags=["live"])


@router.get("/runs/{int:run_id}/news", summary="What a socket would say of a run after a cursor")
def read_news(
    request: HttpRequest, run_id: int, after: Annotated[int, Field(ge=0, le=2**53)] = 0
) -> HttpResponse:
    """`messages`: as on the socket, one frame, or a resync and the state, or the state alone."""
    get_run(request, run_id)
    news = since(run_id, after, SOCKET_RESYNC_EVENTS)
    if news is None:
        raise Http404
    state = f'{{"type":"state","run":{run_id},"state":{news.state.text}}}'
    if news.is_behind or after > news.last_seq:
        messages = [encode({"type": "resync", "run": run_id, "last_seq": news.last_seq}), state]
    elif news.events:
        messages = [frame_text(run_id, after, news.last_seq, [text for _, text in news.events], news.state)]
    else:
        messages = [state]
    body = f'{{"messages":[{",".join(messages)}]}}'
    return HttpResponse(body, content_type="application/json")
