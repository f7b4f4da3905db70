"""How many letters occur as often as this.

Learnt by `interp program train double_histogram -o OUT`.
"""

import json
import sys

LABELS = ["1", "2", "3", "4", "5", "6"]


def count(wanted, keys, values):
    """At each position the sum of the values whose key is the wanted one."""
    found = []
    for want in wanted:
        pairs = zip(keys, values, strict=True)
        found.append(sum(v for k, v in pairs if k == want))
    return found


def count_0_0_seeks(tokens):
    """Which tokens a position with these tokens looks for."""
    return tokens


def table_0_0_is(count_0_0, ones):
    """What it says of count_0_0 and ones."""
    if count_0_0 == 2:
        return 0
    if count_0_0 == 4:
        return 4
    if count_0_0 in (3, 5):
        return 5
    return 1


def count_1_0_seeks(table_0_0):
    """Which table_0_0 a position with these table_0_0 looks for."""
    if table_0_0 == 4:
        return 0
    return table_0_0


def table_1_0_is(count_0_0, count_1_0):
    """What it says of count_0_0 and count_1_0."""
    if count_0_0 == 3:
        if count_1_0 == 3:
            return 1
        return 7
    if count_0_0 in (1, 4, 7):
        if count_1_0 == 3:
            return 6
        if count_1_0 == 4:
            return 2
        if count_1_0 == 5:
            return 0
        if count_1_0 == 6:
            return 4
        if count_1_0 == 7:
            return 3
        return 1
    if count_1_0 == 4:
        return 7
    if count_1_0 == 6:
        return 2
    return 1


def label(table_1_0):
    """The label that a table_1_0 says."""
    if table_1_0 == 0:
        return "4"
    if table_1_0 == 2:
        return "3"
    if table_1_0 == 3:
        return "6"
    if table_1_0 == 4:
        return "5"
    if table_1_0 in (1, 5):
        return "1"
    return "2"


def run(body):
    """The label of each token of the body."""
    tokens = ["<s>", *body]
    ones = [1] * len(tokens)
    count_0_0 = count([count_0_0_seeks(x) for x in tokens], tokens, ones)
    table_0_0 = [table_0_0_is(a, b) for a, b in zip(count_0_0, ones, strict=True)]
    count_1_0 = count([count_1_0_seeks(x) for x in table_0_0], table_0_0, ones)
    table_1_0 = [table_1_0_is(a, b) for a, b in zip(count_0_0, count_1_0, strict=True)]
    labels = [label(x) for x in table_1_0]
    return labels[1:]


if __name__ == "__main__":
    if sys.argv[1:]:
        print(*run("".join(sys.argv[1:])))
    else:
        for line in sys.stdin:
            print(json.dumps(run(json.loads(line))))
