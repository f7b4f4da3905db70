"""The letters in order.

Learnt by `interp program train sort -o OUT`.
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


def count(wanted, keys, values):
    """At each position the sum of the values whose key is the wanted one."""
    found = []
    for want in wanted:
        pairs = zip(keys, values, strict=True)
        found.append(sum(v for k, v in pairs if k == want))
    return found


def closest_0_0_seeks(positions):
    """Which tokens a position with these positions looks for."""
    if positions == 0:
        return "d"
    if positions in (1, 2):
        return "a"
    if positions == 7:
        return "b"
    return "e"


def count_0_0_seeks(tokens):
    """Which tokens a position with these tokens looks for."""
    if tokens == "<s>":
        return "</s>"
    return "d"


def count_0_2_seeks(tokens):
    """Which tokens a position with these tokens looks for."""
    if tokens == "<s>":
        return "c"
    if tokens == "</s>":
        return None
    return "b"


def count_0_3_seeks(tokens):
    """Which tokens a position with these tokens looks for."""
    if tokens == "<s>":
        return None
    return "c"


def count_0_4_seeks(positions):
    """Which tokens a position with these positions looks for."""
    if positions == 0:
        return "d"
    if positions == 5:
        return "<s>"
    if positions in (6, 7):
        return None
    return "a"


def count_0_5_seeks(positions):
    """Which tokens a position with these positions looks for."""
    if positions == 0:
        return None
    if positions in (1, 2):
        return "b"
    if positions == 7:
        return "e"
    return "a"


POSITIONS_VOTES = {
    0: [0, 0, 0, 0, 0],
    1: [2184, 1695, 153, -2084, -1947],
    2: [-609, 453, 155, -723, 724],
    3: [-27, 871, 455, 199, -1499],
    4: [-2344, 76, 506, 1231, 531],
    5: [-994, -1621, -422, 1320, 1717],
    6: [-1019, -2863, -946, 1688, 3140],
    7: [0, 0, 0, 0, 0],
}
CLOSEST_0_0_VOTES = {
    "<s>": [-1814, -657, 294, 1348, 829],
    "a": [1574, 703, 61, -287, -2052],
    "b": [0, 0, 0, 0, 0],
    "c": [0, 0, 0, 0, 0],
    "d": [0, 0, 0, 0, 0],
    "e": [-2569, -1436, -454, 570, 3888],
    "</s>": [0, 0, 0, 0, 0],
}
COUNT_0_0_VOTES = [125, 199, 227, 273, -825]
COUNT_0_2_VOTES = [717, 1129, 319, -612, -1552]
COUNT_0_3_VOTES = [512, 590, 703, -377, -1428]
COUNT_0_4_VOTES = [1286, -195, -232, -342, -516]
COUNT_0_5_VOTES = [1132, 946, 198, -703, -1573]
BIAS = [-2808, -1390, -98, 1631, 2665]


def label(
    positions,
    closest_0_0,
    count_0_0,
    count_0_2,
    count_0_3,
    count_0_4,
    count_0_5,
):
    """The label with most votes; of equals the first."""
    votes = list(BIAS)
    for i in range(len(LABELS)):
        votes[i] += POSITIONS_VOTES[positions][i]
        votes[i] += CLOSEST_0_0_VOTES[closest_0_0][i]
        votes[i] += count_0_0 * COUNT_0_0_VOTES[i]
        votes[i] += count_0_2 * COUNT_0_2_VOTES[i]
        votes[i] += count_0_3 * COUNT_0_3_VOTES[i]
        votes[i] += count_0_4 * COUNT_0_4_VOTES[i]
        votes[i] += count_0_5 * COUNT_0_5_VOTES[i]
    return LABELS[votes.index(max(votes))]


def run(body):
    """The label of each token of the body."""
    tokens = ["<s>", *body, "</s>"]
    positions = list(range(len(tokens)))
    ones = [1] * len(tokens)
    wanted = [closest_0_0_seeks(x) for x in positions]
    closest_0_0 = closest(wanted, tokens, tokens)
    wanted = [count_0_0_seeks(x) for x in tokens]
    count_0_0 = count(wanted, tokens, ones)
    wanted = [count_0_2_seeks(x) for x in tokens]
    count_0_2 = count(wanted, tokens, ones)
    wanted = [count_0_3_seeks(x) for x in tokens]
    count_0_3 = count(wanted, tokens, ones)
    wanted = [count_0_4_seeks(x) for x in positions]
    count_0_4 = count(wanted, tokens, ones)
    wanted = [count_0_5_seeks(x) for x in positions]
    count_0_5 = count(wanted, tokens, ones)
    rows = zip(
        positions,
        closest_0_0,
        count_0_0,
        count_0_2,
        count_0_3,
        count_0_4,
        count_0_5,
        strict=True,
    )
    labels = [label(*row) for row in rows]
    return labels[1:-1]


if __name__ == "__main__":
    if sys.argv[1:]:
        print(*run("".join(sys.argv[1:])))
    else:
        for line in sys.stdin:
            print(json.dumps(run(json.loads(line))))
