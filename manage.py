#!/usr/bin/env python
"""Arborist's command line for operators: `manage.py demo`, `up`, `smoke`, `migrate`, ..."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
