from __future__ import annotations

from django.urls import include, path

from webapp.api import api
from webapp.views import health_check, home, project_list

handler400 = "webapp.views.bad_request"
handler403 = "webapp.views.permission_denied"
handler404 = "webapp.views.page_not_found"
handler500 = "webapp.views.server_error"

urlpatterns = [
    path("", home, name="home"),
    path("p/", project_list, name="projects"),
    path("healthz", health_check, name="healthz"),
    path("", include("webapp.accounts.urls")),
    path("", include("webapp.runs.urls")),
    path("", include("webapp.queue.urls")),
    path("", include("webapp.trees.urls")),
    path("", include("webapp.problems.urls")),
    path("", include("webapp.exports.urls")),
    path("", include("webapp.imports.urls")),
    path("", include("webapp.probes.urls")),
    path("", include("webapp.verifications.urls")),
    path("", include("webapp.search.urls")),
    path("", include("webapp.saved.urls")),
    path("", include("webapp.notes.urls")),
    path("api/v1/", api.urls),
]
