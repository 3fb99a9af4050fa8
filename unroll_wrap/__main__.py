"""``python -m unroll_wrap`` is the program ``unroll_wrap``."""

from .command import main

if __name__ == "__main__":
    raise SystemExit(main())
