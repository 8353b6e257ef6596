from __future__ import annotations

from django.urls import include, path, register_converter

from webapp.problems import views


class ProblemId:
    """An id as a data set has it: any text, blanks, slashes and line breaks included."""

    regex = r"(?s:.+)"

    def to_python(self, value: str) -> str:
        return value

    def to_url(self, value: str) -> str:
        return value


register_converter(ProblemId, "problem")

project_urls = [
    path("", views.problem_list, name="problem-list"),
    path("<problem:problem>", views.problem_history, name="problem-history"),
]

urlpatterns = [
    path("p/<slug:slug>/prompts/", include(project_urls)),
    path("r/<int:run_id>/trees/all", views.all_trees, name="all-trees"),
    path("t/beside", views.beside_chosen, name="trees-beside-chosen"),
    path("t/<int:tree_id>/beside/<int:other_id>/", views.trees_beside, name="trees-beside"),
]
