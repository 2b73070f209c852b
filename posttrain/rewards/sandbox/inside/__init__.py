"""The far side of the sandbox: what runs in its processes. Standard library only, and nothing else of posttrain.

server.py   one trusted process: takes a job as file descriptors, forks the two sides, ends them, says how they ended
worker.py   the untrusted side: the program under test, which answers calls
harness.py  the trusted side: the tests, to which the program's functions are remote
wire.py     what goes between the two: frames of plain data
linux.py    limits, namespaces and Landlock
seccomp.py  which system calls are forbidden, as a filter; meter.py counts the ones that are allowed a number of times
removal.py  removing what a program left
"""
