"""`python -m holdfast.cli`."""

from holdfast.__main__ import main

main()
