"""``python -m hepscale``, where its script is not on the PATH."""

from hepscale.cli import main

main(prog_name="hepscale")
