"""Makes ``python -m hamming_engine`` the command line."""

from .cli import main

raise SystemExit(main())
