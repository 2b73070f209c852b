"""The process that compares formulas: `python maths_server.py`, one JSON line in, one out.

math-verify bounds its time with signals, which reach the main thread only, and a power tower stops for no signal at
all. Here the main thread is its own, and the caller can end the process. Run by path: it imports nothing of posttrain.
"""

import json
import logging
import resource
import sys

MEMORY = 4 << 30


def main() -> None:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        try:
            left = parse(f"\\boxed{{{gold}}}", kinds, parsing_timeout=seconds)
            right = parse(f"\\boxed{{{answer}}}", kinds, parsing_timeout=seconds)
            # its rules differ with the order (it takes the first for the row's), and what is equal one way only is not
            same = bool(
                left
                and right
                and verify(left, right, timeout_seconds=seconds)
                and verify(right, left, timeout_seconds=seconds)
            )
        except Exception:  # the boundary: what cannot be compared is not equal
            same = False
        print(json.dumps(same), flush=True)


if __name__ == "__main__":
    main()
