"""Prints the README's first block of Python, for an environment that has the wheel alone."""

from pages import README, blocks

if __name__ == "__main__":
    print(next(blocks(README.read_text(encoding="utf-8")))[1])
