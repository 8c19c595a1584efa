"""`python -m vidlose`."""

from vidlose.cli import main

if __name__ == "__main__":
    main()
