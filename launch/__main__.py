"""`python -m launch`, the `foreframe` command by another name."""

from launch.cli import main

main()
