"""A pytest plugin, loaded by `-p` before any other: keeps a slow optional import of JupyterLab's out of the tests."""

import sys

# jsonschema does without it. It builds 35 parsers on import: a second for each process that imports nbformat.
sys.modules.setdefault("rfc3987_syntax", None)
