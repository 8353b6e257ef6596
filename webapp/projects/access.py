"""Who may see and do what: the one place that knows roles.

Views, API and sockets start from `projects_for`, `runs_for` or `trees_for`, so what a user may not see does not exist
for them (404). What they may see but not do is refused by `require` (403). There is no way around membership, not even
for superusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import PermissionDenied
from django.db.models import F, QuerySet
from django.http import Http404, HttpRequest

from webapp.accounts.models import User
from webapp.projects.models import Membership, Project
from webapp.runs.models import Run

if TYPE_CHECKING:
    from webapp.trees.models import StoredTree

Role = Membership.Role
_RANK = {Role.VIEWER: 0, Role.EDITOR: 1, Role.ADMIN: 2}


def projects_for(user: User | AnonymousUser) -> QuerySet[Project]:
    """The projects `user` is a member of, each with `.role`."""
    if not isinstance(user, User) or not user.is_active:
        return Project.objects.none()
    return Project.objects.filter(memberships__user=user).annotate(role=F("memberships__role"))


def runs_for(user: User | AnonymousUser) -> QuerySet[Run]:
    """The runs of those projects."""
    if not isinstance(user, User) or not user.is_active:
        return Run.objects.none()
    return Run.objects.filter(project__memberships__user=user)


def trees_for(user: User | AnonymousUser) -> QuerySet[StoredTree]:
    """The trees of those runs, without their payloads."""
    from webapp.trees.models import StoredTree

    if not isinstance(user, User) or not user.is_active:
        return StoredTree.objects.none()
    mine = StoredTree.objects.filter(run__project__memberships__user=user)
    return mine.annotate(role=F("run__project__memberships__role")).defer("payload")


def role_in(user: User | AnonymousUser, project: Project) -> Membership.Role | None:
    """None: not a member."""
    if not isinstance(user, User) or not user.is_active:
        return None
    found = Membership.objects.filter(user=user, project=project).values_list("role", flat=True).first()
    return None if found is None else Role(found)


def may(role: str | None, needed: Membership.Role) -> bool:
    return role is not None and _RANK[Role(role)] >= _RANK[needed]


def require(user: User | AnonymousUser, project: Project, needed: Membership.Role) -> Membership.Role:
    """The user's role. Raises Http404 for strangers, PermissionDenied when the role is too low."""
    role = role_in(user, project)
    if role is None:
        raise Http404
    if not may(role, needed):
        raise PermissionDenied(
            f"You are {role} in {project.name}; this needs {needed}. Ask: {', '.join(admins_of(project)) or 'an administrator'}."
        )
    return role


def admins_of(project: Project) -> list[str]:
    """Names of a project's admins, for the sentence that says whom to ask."""
    admins = Membership.objects.filter(project=project, role=Role.ADMIN).order_by("user__username")
    return list(admins.values_list("user__username", flat=True)[:5])


def get_project(request: HttpRequest, slug: str) -> Any:
    """The project with its `.role` for this request's user, or Http404; remembers it for the page's frame."""
    project = projects_for(request.user).filter(slug=slug).first()
    if project is None:
        raise Http404
    request.project = project  # type: ignore[attr-defined]  # read by webapp.context.shell
    return project


def get_run(request: HttpRequest, run_id: int) -> Run:
    """The run with its project (and the project's `.role`), or Http404."""
    run = (
        runs_for(request.user)
        .filter(id=run_id)
        .select_related("project", "created_by")
        .annotate(role=F("project__memberships__role"))
        .first()
    )
    if run is None:
        raise Http404
    run.project.role = run.role
    request.project = run.project
    return run
