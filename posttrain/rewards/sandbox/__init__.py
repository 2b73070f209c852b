"""Running programs that nobody has read: `Sandbox`. See docs/sandbox.md for what it holds off and what it does not.

    with Sandbox() as sandbox:
        sandbox.layers                                                     # {"limits": True, "seccomp": True, ...}
        sandbox.run_tests("def f(x): return x + 1", "assert f(2) == 3")    # Verdict(PASSED, calls=1, ...)
        sandbox.run_script("print(int(input()) + 1)", "2")                 # Printed("3\\n", Outcome.FINISHED, ...)

client.py   what the caller holds; lane.py one server process of it
inside/     what runs in the sandbox's own processes
"""

from posttrain.rewards.sandbox.client import Printed, Sandbox, Verdict
from posttrain.rewards.sandbox.lane import Limits, Outcome

__all__ = ["Limits", "Outcome", "Printed", "Sandbox", "Verdict"]
