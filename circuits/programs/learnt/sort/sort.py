"""The letters in order.

Learnt by `interp program train sort -o OUT`.
"""

import json
import sys

LABELS = ["a", "b", "c", "d", "e"]


def count(wanted, keys, values):
    """At each position the sum of the values whose key is the wanted one."""
    found = []
    for want in wanted:
        pairs = zip(keys, values, strict=True)
        found.append(sum(v for k, v in pairs if k == want))
    return found


def count_0_0_seeks(positions):
    """Which tokens a position with these positions looks for."""
    return "c"


def count_0_1_seeks(tokens):
    """Which tokens a position with these tokens looks for."""
    return "a"


def count_0_3_seeks(tokens):
    """Which tokens a position with these tokens looks for."""
    return "b"


def count_0_4_seeks(positions):
    """Which tokens a position with these positions looks for."""
    return "d"


POSITIONS_VOTES = {
    0: [0, 0, 0, 0, 0],
    1: [3659, 1721, -44, -1762, -3575],
    2: [1888, 931, 6, -919, -1904],
    3: [75, 88, 31, -54, -138],
    4: [-1690, -776, 33, 801, 1633],
    5: [-3398, -1638, 9, 1629, 3399],
    6: [-4948, -2453, -59, 2371, 5090],
    7: [0, 0, 0, 0, 0],
}
COUNT_0_0_VOTES = [486, 501, 554, -309, -1232]
COUNT_0_1_VOTES = [1771, 825, -7, -830, -1758]
COUNT_0_3_VOTES = [988, 1045, 178, -642, -1568]
COUNT_0_4_VOTES = [153, 166, 180, 232, -731]
BIAS = [-4415, -2129, -25, 2066, 4503]


def label(positions, count_0_0, count_0_1, count_0_3, count_0_4):
    """The label with most votes; of equals the first."""
    votes = list(BIAS)
    for i in range(len(LABELS)):
        votes[i] += POSITIONS_VOTES[positions][i]
        votes[i] += count_0_0 * COUNT_0_0_VOTES[i]
        votes[i] += count_0_1 * COUNT_0_1_VOTES[i]
        votes[i] += count_0_3 * COUNT_0_3_VOTES[i]
        votes[i] += count_0_4 * COUNT_0_4_VOTES[i]
    return LABELS[votes.index(max(votes))]


def run(body):
    """The label of each token of the body."""
    tokens = ["<s>", *body, "</s>"]
    positions = list(range(len(tokens)))
    ones = [1] * len(tokens)
    count_0_0 = count([count_0_0_seeks(x) for x in positions], tokens, ones)
    count_0_1 = count([count_0_1_seeks(x) for x in tokens], tokens, ones)
    count_0_3 = count([count_0_3_seeks(x) for x in tokens], tokens, ones)
    count_0_4 = count([count_0_4_seeks(x) for x in positions], tokens, ones)
    rows = zip(positions, count_0_0, count_0_1, count_0_3, count_0_4, strict=True)
    labels = [label(*row) for row in rows]
    return labels[1:-1]


if __name__ == "__main__":
    if sys.argv[1:]:
        print(*run("".join(sys.argv[1:])))
    else:
        for line in sys.stdin:
            print(json.dumps(run(json.loads(line))))
