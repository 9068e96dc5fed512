"""`python -m stemma` is the program `stemma`."""

from stemma.cli import main

if __name__ == "__main__":
    main()
