"""`python -m orchestrator` is `lethe`."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
