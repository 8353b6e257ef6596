"""Static files under names that change with their content, also inside ES modules, so browsers may keep them
for ever.
"""

from __future__ import annotations

from django.contrib.staticfiles.storage import ManifestStaticFilesStorage


class ModuleManifestStorage(ManifestStaticFilesStorage):
    """Hashes the names that JavaScript modules import, too.

    Before `collectstatic` ran there is no manifest, and files keep their plain names.
    """

    support_js_module_import_aggregation = True

    def stored_name(self, name: str) -> str:
        return super().stored_name(name) if self.hashed_files else name
