"""How the processes of a run come to be, and how each learns which one it is.

`environments/` reads what a launcher such as torchrun or SLURM told this process. Where nobody started the others,
`script.py` or `multiprocess.py` does.
"""
