from __future__ import annotations

from django.urls import include, path

from webapp.trees import views

tree_urls = [
    path("", views.tree_detail, name="tree-detail"),
    path("n/<str:name>", views.node_page, name="node-page"),
    path("siblings", views.siblings_page, name="node-siblings"),
    path("estimators", views.estimators_page, name="node-estimators"),
    path("diff", views.diff_page, name="node-diff"),
]

urlpatterns = [
    path("r/<int:run_id>/trees", views.run_trees, name="run-trees"),
    path("r/<int:run_id>/growing", views.growing_tree, name="growing-tree"),
    path("r/<int:run_id>/system", views.run_system, name="run-system"),
    path("t/<int:tree_id>/", include(tree_urls)),
]
