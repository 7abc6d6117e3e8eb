"""The entry point of `hwnas`, which is `python -m hwnas` too: an interrupt is one line from the first moment on."""

import sys


def main() -> None:
    try:
        from hwnas.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()


if __name__ == "__main__":
    main()
