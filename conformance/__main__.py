"""``python -m perdure.conformance URL``: the suite where the ``perdure`` command is not installed."""

from perdure.conformance.command import main

if __name__ == "__main__":
    main()
