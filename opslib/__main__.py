"""The command line → its exit code: `python -m opslib` is the console script `ops`."""

from opslib.cli import main

if __name__ == "__main__":
    main()
