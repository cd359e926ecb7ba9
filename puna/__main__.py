"""`python -m puna` is the executable `puna`."""

from puna.cli.main import main

if __name__ == "__main__":
    main()
