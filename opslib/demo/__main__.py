"""`python -m opslib.demo FOLDER …` → the demo's supervisor; `ops demo up` starts it."""

from __future__ import annotations

import sys

from opslib.demo.supervisor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
