"""Who may see and do what: the one place that knows roles.

Views, API and sockets start from `projects_for`, `runs_for` or `trees_for`, so what a user may not see does
not exist for them (404). What they may see but not do is refused by `require` (403). There is no way around
membership, not even for superusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import PermissionDenied
from django.db.models import CharField, F, Q, QuerySet
from django.db.models.expressions import RawSQL
from django.http import Http404, HttpRequest

from webapp.accounts.models import User
from webapp.projects.models import Membership, Project
from webapp.runs.models import Run

if TYPE_CHECKING:
    from django_stubs_ext import WithAnnotations

    from webapp.exports.models import Export
    from webapp.imports.models import Import
    from webapp.probes.models import Probe
    from webapp.trees.models import StoredTree
    from webapp.verifications.models import Verification

    class _WithRole(TypedDict):
        role: str

    class _OfTree(_WithRole):
        version: str

    ProjectSeen = WithAnnotations[Project, _WithRole]
    RunSeen = WithAnnotations[Run, _WithRole]
    TreeListed = WithAnnotations[StoredTree, _WithRole]
    ProbeSeen = WithAnnotations[Probe, _WithRole]
    VerificationSeen = WithAnnotations[Verification, _WithRole]
    TreeSeen = WithAnnotations[StoredTree, _OfTree]
    ExportSeen = WithAnnotations[Export, _WithRole]
    ImportSeen = WithAnnotations[Import, _WithRole]

Role = Membership.Role
_RANK = {Role.VIEWER: 0, Role.EDITOR: 1, Role.ADMIN: 2}


def projects_for(user: User | AnonymousUser) -> QuerySet[ProjectSeen]:
    """The projects `user` is a member of, each with the user's `.role`."""
    return Project.objects.filter(_member(user, "")).annotate(role=F("memberships__role"))


def runs_for(user: User | AnonymousUser) -> QuerySet[RunSeen]:
    """The runs of those projects, likewise."""
    return Run.objects.filter(_member(user, "project__")).annotate(role=F("project__memberships__role"))


def trees_for(user: User | AnonymousUser) -> QuerySet[TreeListed]:
    """The trees of those runs, likewise, without their payloads."""
    from webapp.trees.models import StoredTree

    mine = StoredTree.objects.filter(_member(user, "run__project__"))
    return mine.annotate(role=F("run__project__memberships__role")).defer("payload")


def exports_for(user: User | AnonymousUser) -> QuerySet[ExportSeen]:
    """The exports of those projects, likewise: they hold what every member may read."""
    from webapp.exports.models import Export

    return Export.objects.filter(_member(user, "project__")).annotate(role=F("project__memberships__role"))


def imports_for(user: User | AnonymousUser) -> QuerySet[ImportSeen]:
    """The imports of those projects, likewise."""
    from webapp.imports.models import Import

    return Import.objects.filter(_member(user, "project__")).annotate(role=F("project__memberships__role"))


def probes_for(user: User | AnonymousUser) -> QuerySet[ProbeSeen]:
    """The probes of those trees, likewise."""
    from webapp.probes.models import Probe

    mine = Probe.objects.filter(_member(user, "tree__run__project__"))
    return mine.annotate(role=F("tree__run__project__memberships__role"))


def verifications_for(user: User | AnonymousUser) -> QuerySet[VerificationSeen]:
    """The verifications of their answers, likewise."""
    from webapp.verifications.models import Verification

    mine = Verification.objects.filter(_member(user, "tree__run__project__"))
    return mine.annotate(role=F("tree__run__project__memberships__role"))


def _member(user: User | AnonymousUser, path: str) -> Q:
    """Of one membership row, so that the role annotated beside it is this user's. Strangers match nothing."""
    if not isinstance(user, User) or not user.is_active:
        return Q(pk__in=())
    mine = Q(**{f"{path}memberships__user": user})
    if user.only_project is not None:
        mine &= Q(**{f"{path}memberships__project": user.only_project})
    return mine


def role_in(user: User | AnonymousUser, project: Project) -> Membership.Role | None:
    """None: not a member."""
    if not isinstance(user, User) or not user.is_active:
        return None
    if user.only_project not in (None, project.pk):
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
            f"You are {role} in {project.name}; this needs {needed}. "
            f"Ask: {', '.join(admins_of(project)) or 'an administrator'}."
        )
    return role


def is_operator(user: User | AnonymousUser) -> bool:
    """Whether the user may order workers about, which are everybody's: staff, and whoever is admin of every
    project there is.
    """
    if not isinstance(user, User) or not user.is_active or user.only_project is not None:
        return False
    if user.is_staff:
        return True
    mine = Membership.objects.filter(user=user, role=Role.ADMIN).values("project")
    return mine.exists() and not Project.objects.exclude(id__in=mine).exists()


def require_operator(user: User | AnonymousUser) -> None:
    """Raises PermissionDenied for everybody else."""
    if not is_operator(user):
        raise PermissionDenied(
            "Workers belong to everybody, so this needs an operator: staff, or an admin of every project. "
            "`manage.py create_user NAME --operator` makes one."
        )


def admins_of(project: Project) -> list[str]:
    """Names of a project's admins, for the sentence that says whom to ask."""
    admins = Membership.objects.filter(project=project, role=Role.ADMIN).order_by("user__username")
    return list(admins.values_list("user__username", flat=True)[:5])


def user_of(request: HttpRequest) -> User:
    """Who asks. The login middleware let nobody else through."""
    if not isinstance(request.user, User):
        raise PermissionDenied("Log in first.")
    return request.user


def get_project(request: HttpRequest, slug: str) -> ProjectSeen:
    """The project, or Http404."""
    project = projects_for(request.user).filter(slug=slug).first()
    if project is None:
        raise Http404
    show_in_frame(request, project)
    return project


def get_run(request: HttpRequest, run_id: int) -> RunSeen:
    """The run with its project and its author, or Http404."""
    run = runs_for(request.user).filter(id=run_id).select_related("project", "created_by").first()
    if run is None:
        raise Http404
    show_in_frame(request, run.project)
    return run


def get_tree(request: HttpRequest, tree_id: int) -> TreeSeen:
    """The tree with its run and project, or Http404. `version` changes whenever its row does; the payload is
    read when it is asked for.
    """
    tree = (
        trees_for(request.user)
        .annotate(version=RawSQL("concat(arborist_tree.xmin, arborist_tree.ctid)", (), CharField()))
        .select_related("run__project", "run__created_by")
        .filter(id=tree_id)
        .first()
    )
    if tree is None:
        raise Http404
    show_in_frame(request, tree.run.project)
    return tree


def get_export(request: HttpRequest, export_id: int) -> ExportSeen:
    """The export with its project and its author, or Http404."""
    export = exports_for(request.user).filter(id=export_id).select_related("project", "created_by").first()
    if export is None:
        raise Http404
    return export


def get_import(request: HttpRequest, import_id: int) -> ImportSeen:
    """The import with its project and its author, or Http404."""
    asked = imports_for(request.user).filter(id=import_id).select_related("project", "created_by").first()
    if asked is None:
        raise Http404
    return asked


def get_probe(request: HttpRequest, probe_id: int) -> ProbeSeen:
    """The probe with its author, or Http404. Its tree comes without the payload."""
    rows = probes_for(request.user).select_related("created_by", "tree__run__project")
    probe = rows.defer("tree__payload").filter(id=probe_id).first()
    if probe is None:
        raise Http404
    show_in_frame(request, probe.tree.run.project)
    return probe


def get_verification(request: HttpRequest, verification_id: int) -> VerificationSeen:
    """The verification with its author, or Http404."""
    rows = verifications_for(request.user).select_related("created_by")
    asked = rows.filter(id=verification_id).first()
    if asked is None:
        raise Http404
    return asked


def show_in_frame(request: HttpRequest, project: Project) -> None:
    """The page's frame names this project (`webapp.context.shell`)."""
    request.project = project  # type: ignore[attr-defined]  # our own attribute
