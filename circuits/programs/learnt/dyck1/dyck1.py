"""Of each beginning of 15 brackets (): T balanced, P may become so, F cannot.

Learnt by `interp program train dyck1 -o OUT`.
"""

import json
import sys

LABELS = ["T", "P", "F"]


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


def count(wanted, keys, values):
    """At each position the sum of the values whose key is the wanted one. Only what comes before counts."""
    found = []
    for i, want in enumerate(wanted):
        pairs = zip(keys[: i + 1], values, strict=False)
        found.append(sum(v for k, v in pairs if k == want))
    return found


def count_0_0_seeks(tokens):
    """Which tokens a position with these tokens looks for."""
    return ")"


def count_0_1_seeks(tokens):
    """Which tokens a position with these tokens looks for."""
    if tokens == ")":
        return "("
    return tokens


TABLE_0_0 = {
    0: [6, 6, 6, 6, 6, 6, 6, 6, 7, 6, 6, 6, 6, 6, 6, 6, 6],
    1: [8, 15, 6, 6, 6, 6, 6, 6, 6, 6, 7, 6, 6, 6, 6, 6, 6],
    2: [0, 0, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6],
    3: [2, 0, 0, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6],
    4: [1, 1, 1, 1, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6],
    5: [0, 1, 12, 1, 14, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6],
    6: [6, 2, 12, 14, 0, 14, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6],
    7: [1, 1, 12, 12, 14, 0, 0, 15, 6, 6, 6, 6, 6, 6, 6, 6, 6],
    8: [6, 11, 12, 12, 12, 12, 1, 0, 6, 6, 6, 6, 6, 6, 6, 6, 6],
    9: [15, 14, 12, 12, 12, 12, 1, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6],
    10: [6, 4, 3, 13, 1, 12, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6],
    11: [10, 9, 9, 9, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6],
    12: [6, 2, 12, 9, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6],
    13: [6, 0, 12, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6],
    14: [6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6],
    15: [6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6],
}


def table_0_0_is(count_0_1, count_0_0):
    """What it says of count_0_1 and count_0_0."""
    return TABLE_0_0[count_0_1][count_0_0]


def closest_1_0_seeks(table_0_0):
    """Which table_0_0 a position with these table_0_0 looks for."""
    return 6


def count_1_1_seeks(table_0_0):
    """Which table_0_0 a position with these table_0_0 looks for."""
    return 6


TABLE_0_0_VOTES = {
    0: [-910, 423, -101],
    1: [-1144, 365, -36],
    2: [-99, 126, -82],
    3: [77, -31, 13],
    4: [775, -878, 8],
    5: [159, -147, 6],
    6: [134, -385, 108],
    7: [-213, -71, 149],
    8: [-173, 309, -224],
    9: [-101, 6, 57],
    10: [381, -280, 58],
    11: [-65, 56, 13],
    12: [-873, 131, 14],
    13: [45, -138, 90],
    14: [-129, 144, -86],
    15: [582, -493, -1],
}
CLOSEST_1_0_VOTES = {
    0: [202, 308, -409],
    1: [-1139, -1078, 1348],
    2: [-27, 25, 16],
    3: [-941, -853, 1048],
    4: [-16, -20, 60],
    5: [-734, -461, 567],
    6: [193, 51, -91],
    7: [-503, -385, 527],
    8: [194, 136, -191],
    9: [-449, -362, 467],
    10: [203, 110, -161],
    11: [-267, -217, 323],
    12: [224, 126, -208],
    13: [-129, -67, 85],
    14: [172, 255, -291],
    15: [-441, 182, -112],
}
COUNT_0_0_VOTES = [118, -147, 5]
COUNT_0_1_VOTES = [-172, 103, -33]
COUNT_1_1_VOTES = [-185, -236, 262]
BIAS = [-80, 17, -57]


def label(table_0_0, closest_1_0, count_0_0, count_0_1, count_1_1):
    """The label with most votes; of equals the first."""
    votes = list(BIAS)
    for i in range(len(LABELS)):
        votes[i] += TABLE_0_0_VOTES[table_0_0][i]
        votes[i] += CLOSEST_1_0_VOTES[closest_1_0][i]
        votes[i] += count_0_0 * COUNT_0_0_VOTES[i]
        votes[i] += count_0_1 * COUNT_0_1_VOTES[i]
        votes[i] += count_1_1 * COUNT_1_1_VOTES[i]
    return LABELS[votes.index(max(votes))]


def run(body):
    """The label of each token of the body."""
    tokens = ["<s>", *body]
    positions = list(range(len(tokens)))
    ones = [1] * len(tokens)
    count_0_0 = count([count_0_0_seeks(x) for x in tokens], tokens, ones)
    count_0_1 = count([count_0_1_seeks(x) for x in tokens], tokens, ones)
    table_0_0 = [table_0_0_is(a, b) for a, b in zip(count_0_1, count_0_0, strict=True)]
    wanted = [closest_1_0_seeks(x) for x in table_0_0]
    closest_1_0 = closest(wanted, table_0_0, positions)
    count_1_1 = count([count_1_1_seeks(x) for x in table_0_0], table_0_0, count_0_0)
    rows = zip(table_0_0, closest_1_0, count_0_0, count_0_1, count_1_1, strict=True)
    labels = [label(*row) for row in rows]
    return labels[1:]


if __name__ == "__main__":
    if sys.argv[1:]:
        print(*run("".join(sys.argv[1:])))
    else:
        for line in sys.stdin:
            print(json.dumps(run(json.loads(line))))
