"""Projects, who is in them, and what runs are made from: datasets and base models."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models.functions import Now


class Project(models.Model):
    """A folder of runs with members."""

    slug = models.SlugField(max_length=64, unique=True)
    name = models.CharField(max_length=120)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "arborist_project"
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    """One user's role in one project. Viewers look, editors run, admins manage members."""

    class Role(models.TextChoices):
        VIEWER = "viewer"
        EDITOR = "editor"
        ADMIN = "admin"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=8, choices=Role.choices)

    class Meta:
        db_table = "arborist_membership"
        constraints = [
            models.UniqueConstraint(fields=["project", "user"], name="one_role_per_user_and_project"),
            models.CheckConstraint(
                condition=models.Q(role__in=["viewer", "editor", "admin"]), name="role_is_known"
            ),
        ]


class Dataset(models.Model):
    """Problems a project trains on. `spec` is the config's `data` section, so a run copies it as it is."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="datasets")
    slug = models.SlugField(max_length=64)
    name = models.CharField(max_length=120)
    spec = models.JSONField()
    n_problems = models.BigIntegerField(null=True, blank=True, help_text="Empty: generated without end.")
    sha256 = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "arborist_dataset"
        ordering = ["slug"]
        constraints = [
            models.UniqueConstraint(fields=["project", "slug"], name="dataset_slug_is_unique_in_its_project")
        ]

    def __str__(self) -> str:
        return self.name


class ModelSource(models.Model):
    """A base model that runs may start from: a folder this server trusts. Configs name it by slug, never by
    path.
    """

    slug = models.SlugField(max_length=64, unique=True)
    name = models.CharField(max_length=120)
    path = models.CharField(max_length=1024, help_text="`tiny-reasoner`, or a folder on the workers' disks.")
    n_parameters = models.BigIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "arborist_model_source"
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.name
