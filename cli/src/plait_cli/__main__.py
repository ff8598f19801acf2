"""``python -m plait_cli`` is the command ``plait``."""

from plait_cli.main import main

if __name__ == "__main__":
    main()
