"""`python -m glmtune`, so that `torchrun -m glmtune` works, too."""

from glmtune.own_path import shut_out_current_folder

shut_out_current_folder()

from glmtune.cli import main  # noqa: E402 -- with its modules from where they belong

main()
