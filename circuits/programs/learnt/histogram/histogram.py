"""How often each letter occurs.

Learnt by `interp program train histogram -o OUT`.
"""

import json
import sys

LABELS = ["1", "2", "3", "4", "5", "6", "7"]


def count(wanted, keys, values):
    """At each position the sum of the values whose key is the wanted one."""
    found = []
    for want in wanted:
        pairs = zip(keys, values, strict=True)
        found.append(sum(v for k, v in pairs if k == want))
    return found


def count_0_0_seeks(tokens):
    """Which tokens a position with these tokens looks for."""
    if tokens == "<s>":
        return None
    return tokens


def label(count_0_0):
    """The label that a count_0_0 says."""
    if count_0_0 == 2:
        return "2"
    if count_0_0 == 3:
        return "3"
    if count_0_0 == 4:
        return "4"
    if count_0_0 == 5:
        return "5"
    if count_0_0 == 6:
        return "6"
    if count_0_0 in (0, 1):
        return "1"
    return "7"


def run(body):
    """The label of each token of the body."""
    tokens = ["<s>", *body]
    ones = [1] * len(tokens)
    count_0_0 = count([count_0_0_seeks(x) for x in tokens], tokens, ones)
    labels = [label(x) for x in count_0_0]
    return labels[1:]


if __name__ == "__main__":
    if sys.argv[1:]:
        print(*run("".join(sys.argv[1:])))
    else:
        for line in sys.stdin:
            print(json.dumps(run(json.loads(line))))
