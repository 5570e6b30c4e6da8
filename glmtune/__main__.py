"""`python -m glmtune`, so that `torchrun -m glmtune` works, too."""

from glmtune.cli import main

main()
