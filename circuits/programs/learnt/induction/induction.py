"""Letters and digits in turn; at a letter, the digit after its last occurrence.

Learnt by `interp program train induction -o OUT`.
"""

import json
import sys

LABELS = ["0", "1", "2", "3", "?"]


def closest(wanted, keys, values):
    """At each position the value at the nearest other one whose key is the wanted one.

    Of two equally near the earlier; else its own value if its key is the wanted one;
    else the value at the first position.
    Only what comes before counts.
    """
    found = []
    for i, want in enumerate(wanted):
        places = [j for j, key in enumerate(keys[: i + 1]) if key == want]
        nearest = min(places, key=lambda j: (j == i, abs(i - j), j), default=0)
        found.append(values[nearest])
    return found


def closest_0_1_seeks(positions):
    """Which positions a position with these positions looks for."""
    if positions == 2:
        return 1
    if positions == 3:
        return 2
    if positions == 4:
        return 3
    if positions == 8:
        return 7
    if positions in (0, 6):
        return 5
    if positions in (1, 9):
        return 8
    return 4


def closest_1_1_seeks(tokens):
    """Which closest_0_1 a position with these tokens looks for."""
    if tokens == "3":
        return "2"
    if tokens in ("0", "1", "2"):
        return "<s>"
    return tokens


def label(closest_1_1):
    """The label that a closest_1_1 says."""
    if closest_1_1 == "0":
        return "0"
    if closest_1_1 == "1":
        return "1"
    if closest_1_1 == "2":
        return "2"
    if closest_1_1 == "3":
        return "3"
    return "?"


def run(body):
    """The label of each token of the body."""
    tokens = ["<s>", *body]
    positions = list(range(len(tokens)))
    wanted = [closest_0_1_seeks(x) for x in positions]
    closest_0_1 = closest(wanted, positions, tokens)
    wanted = [closest_1_1_seeks(x) for x in tokens]
    closest_1_1 = closest(wanted, closest_0_1, tokens)
    labels = [label(x) for x in closest_1_1]
    return labels[1:]


if __name__ == "__main__":
    if sys.argv[1:]:
        print(*run("".join(sys.argv[1:])))
    else:
        for line in sys.stdin:
            print(json.dumps(run(json.loads(line))))
