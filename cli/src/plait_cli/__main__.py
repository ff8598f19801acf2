"""``python -m plait_cli`` is the command ``plait``."""

if __name__ == "__main__":
    import sys

    if not sys.flags.safe_path:
        # `-m` puts the user's folder first, where a `statistics.py` hides Python's own; a console script has it nowhere
        sys.path.append(sys.path.pop(0))

    from plait_cli.main import main

    main()
