"""The letters from last to first.

Learnt by `interp program train reverse -o OUT`.
"""

import json
import sys

LABELS = ["a", "b", "c", "d", "e"]


def closest(wanted, keys, values):
    """At each position the value at the nearest other one whose key is the wanted one.

    Of two equally near the earlier; else its own value if its key is the wanted one;
    else the value at the first position.
    """
    found = []
    for i, want in enumerate(wanted):
        places = [j for j, key in enumerate(keys) if key == want]
        nearest = min(places, key=lambda j: (j == i, abs(i - j), j), default=0)
        found.append(values[nearest])
    return found


def closest_0_0_seeks(tokens):
    """Which tokens a position with these tokens looks for."""
    return "</s>"


def table_0_0_is(closest_0_0, positions):
    """What it says of closest_0_0 and positions."""
    if positions == 1:
        if closest_0_0 == 5:
            return 1
        return closest_0_0
    if positions == 2:
        if closest_0_0 == 4:
            return 3
        if closest_0_0 == 5:
            return 4
        if closest_0_0 == 6:
            return 1
        if closest_0_0 == 7:
            return 6
        return 2
    if positions == 3:
        if closest_0_0 == 5:
            return 3
        if closest_0_0 == 6:
            return 4
        if closest_0_0 == 7:
            return 5
        return 2
    if positions == 4:
        if closest_0_0 == 6:
            return 3
        if closest_0_0 == 7:
            return 4
        return 2
    if positions == 5:
        if closest_0_0 == 7:
            return 3
        return 2
    return 2


def closest_1_0_seeks(table_0_0):
    """Which positions a position with these table_0_0 looks for."""
    if table_0_0 == 2:
        return 1
    if table_0_0 == 3:
        return 2
    if table_0_0 == 4:
        return 3
    if table_0_0 == 6:
        return 5
    if table_0_0 == 7:
        return 6
    return 4


def label(closest_1_0):
    """The label that a closest_1_0 says."""
    if closest_1_0 in ("<s>", "</s>"):
        return "e"
    return closest_1_0


def run(body):
    """The label of each token of the body."""
    tokens = ["<s>", *body, "</s>"]
    positions = list(range(len(tokens)))
    closest_0_0 = closest([closest_0_0_seeks(x) for x in tokens], tokens, positions)
    pairs = zip(closest_0_0, positions, strict=True)
    table_0_0 = [table_0_0_is(a, b) for a, b in pairs]
    closest_1_0 = closest([closest_1_0_seeks(x) for x in table_0_0], positions, tokens)
    labels = [label(x) for x in closest_1_0]
    return labels[1:-1]


if __name__ == "__main__":
    if sys.argv[1:]:
        print(*run("".join(sys.argv[1:])))
    else:
        for line in sys.stdin:
            print(json.dumps(run(json.loads(line))))
