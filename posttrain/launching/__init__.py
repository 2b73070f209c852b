"""Starting many processes: on this machine, under Slurm, on a Ray cluster; and what each of them does first."""
