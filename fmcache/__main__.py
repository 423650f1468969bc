"""python -m fmcache."""

from fmcache.cli import main

main()
