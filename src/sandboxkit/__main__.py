"""`python -m sandboxkit`: the command without its script."""

from sandboxkit.cli import main

if __name__ == "__main__":
    main(prog_name="sandboxkit")
