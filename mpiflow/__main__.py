"""``python -m mpiflow``."""

from mpiflow.cli import main

if __name__ == "__main__":
    main()
