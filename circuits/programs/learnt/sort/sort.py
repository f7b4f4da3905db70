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


def count_0_1_seeks(positions):
    """Which positions a position with these positions looks for."""
    if positions in (0, 5):
        return 7
    if positions == 1:
        return 3
    if positions == 3:
        return 5
    if positions == 6:
        return 1
    return 6


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


TOKENS_VOTES = {
    "<s>": [0, 0, 0, 0, 0],
    "a": [-296, -111, 55, 154, 199],
    "b": [-406, -189, -41, 204, 432],
    "c": [-298, -163, 7, 179, 275],
    "d": [-278, -181, -29, 204, 283],
    "e": [-361, -181, -50, 199, 393],
    "</s>": [0, 0, 0, 0, 0],
}
POSITIONS_VOTES = {
    0: [0, 0, 0, 0, 0],
    1: [2393, 1827, 224, -2184, -2259],
    2: [-418, 658, 224, -831, 367],
    3: [41, 996, 497, 96, -1631],
    4: [-2304, 165, 516, 1144, 479],
    5: [-702, -1602, -478, 1178, 1604],
    6: [-650, -2870, -1040, 1538, 3021],
    7: [0, 0, 0, 0, 0],
}
CLOSEST_0_0_VOTES = {
    "<s>": [-1426, -443, 310, 1080, 479],
    "a": [1975, 849, 53, -507, -2371],
    "b": [0, 0, 0, 0, 0],
    "c": [0, 0, 0, 0, 0],
    "d": [0, 0, 0, 0, 0],
    "e": [-2188, -1232, -421, 366, 3473],
    "</s>": [0, 0, 0, 0, 0],
}
COUNT_0_0_VOTES = [95, 189, 235, 305, -823]
COUNT_0_1_VOTES = [178, 69, -6, -79, -162]
COUNT_0_2_VOTES = [754, 1155, 327, -623, -1613]
COUNT_0_3_VOTES = [485, 613, 726, -372, -1452]
COUNT_0_4_VOTES = [1401, -194, -266, -394, -548]
COUNT_0_5_VOTES = [1102, 968, 212, -681, -1601]
BIAS = [-3276, -1650, -114, 1878, 3160]


def label(
    tokens,
    positions,
    closest_0_0,
    count_0_0,
    count_0_1,
    count_0_2,
    count_0_3,
    count_0_4,
    count_0_5,
):
    """The label with most votes; of equals the first."""
    votes = list(BIAS)
    for i in range(len(LABELS)):
        votes[i] += TOKENS_VOTES[tokens][i]
        votes[i] += POSITIONS_VOTES[positions][i]
        votes[i] += CLOSEST_0_0_VOTES[closest_0_0][i]
        votes[i] += count_0_0 * COUNT_0_0_VOTES[i]
        votes[i] += count_0_1 * COUNT_0_1_VOTES[i]
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
    wanted = [count_0_1_seeks(x) for x in positions]
    count_0_1 = count(wanted, positions, ones)
    wanted = [count_0_2_seeks(x) for x in tokens]
    count_0_2 = count(wanted, tokens, ones)
    wanted = [count_0_3_seeks(x) for x in tokens]
    count_0_3 = count(wanted, tokens, ones)
    wanted = [count_0_4_seeks(x) for x in positions]
    count_0_4 = count(wanted, tokens, ones)
    wanted = [count_0_5_seeks(x) for x in positions]
    count_0_5 = count(wanted, tokens, ones)
    rows = zip(
        tokens,
        positions,
        closest_0_0,
        count_0_0,
        count_0_1,
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
