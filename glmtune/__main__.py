"""`python -m glmtune`, so that `torchrun -m glmtune` works, too."""

from glmtune.processes.own_path import shut_out_current_folder

shut_out_current_folder()

from glmtune.cli.app import main  # noqa: E402 -- with its modules from where they belong

main()
