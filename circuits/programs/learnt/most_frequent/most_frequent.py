"""Each letter once, the most frequent first.

Learnt by `interp program train most_frequent -o OUT`.
"""

import json
import sys

LABELS = ["a", "b", "c", "d", "e", "f", "<s>"]


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
    if positions == 5:
        return "e"
    if positions in (6, 7):
        return None
    return "a"


def closest_0_1_seeks(tokens):
    """Which tokens a position with these tokens looks for."""
    return tokens


def closest_0_2_seeks(positions):
    """Which tokens a position with these positions looks for."""
    if positions == 0:
        return "a"
    if positions == 2:
        return "b"
    if positions == 3:
        return "c"
    if positions == 5:
        return "e"
    if positions == 6:
        return None
    if positions == 7:
        return "f"
    return "d"


def closest_0_3_seeks(positions):
    """Which tokens a position with these positions looks for."""
    if positions == 1:
        return "b"
    if positions == 3:
        return "d"
    if positions == 4:
        return None
    if positions == 7:
        return "c"
    return "e"


def count_0_0_seeks(positions):
    """Which tokens a position with these positions looks for."""
    if positions == 1:
        return "b"
    if positions == 3:
        return "d"
    if positions == 4:
        return "e"
    if positions == 6:
        return "<s>"
    if positions in (0, 5):
        return "a"
    return "c"


def count_0_1_seeks(positions):
    """Which positions a position with these positions looks for."""
    if positions == 2:
        return 5
    return 4


def count_0_2_seeks(positions):
    """Which tokens a position with these positions looks for."""
    if positions == 1:
        return None
    return "f"


def table_0_0_is(closest_0_1, positions):
    """What it says of closest_0_1 and positions."""
    if positions == 2:
        if closest_0_1 == 1:
            return 0
        if closest_0_1 == 2:
            return 1
        return 2
    if positions == 3:
        if closest_0_1 == 1:
            return 6
        if closest_0_1 == 2:
            return 2
        if closest_0_1 == 3:
            return 5
        return 1
    if positions == 4:
        if closest_0_1 == 1:
            return 6
        if closest_0_1 in (2, 3):
            return 2
        if closest_0_1 == 4:
            return 3
        return 1
    if positions == 5:
        if closest_0_1 == 1:
            return 0
        if closest_0_1 == 5:
            return 4
        if closest_0_1 in (6, 7):
            return 1
        return 2
    if positions == 6:
        if closest_0_1 == 4:
            return 6
        if closest_0_1 == 6:
            return 4
        if closest_0_1 == 7:
            return 1
        if closest_0_1 in (1, 5):
            return 0
        return 2
    if positions == 7:
        if closest_0_1 == 7:
            return 7
        return 2
    if closest_0_1 == 0:
        return 6
    if closest_0_1 == 1:
        return 2
    return 0


def table_0_1_is(count_0_0, count_0_1):
    """What it says of count_0_0 and count_0_1."""
    if count_0_0 == 0:
        return 6
    if count_0_0 == 1:
        if count_0_1 == 0:
            return 5
        return 0
    if count_0_0 == 2:
        if count_0_1 == 0:
            return 7
        return 1
    return 7


def closest_1_0_seeks(positions):
    """Which table_0_1 a position with these positions looks for."""
    if positions == 1:
        return None
    if positions in (2, 3):
        return 7
    return 1


def closest_1_1_seeks(positions):
    """Which table_0_0 a position with these positions looks for."""
    if positions in (1, 2):
        return 2
    if positions == 3:
        return 1
    if positions == 4:
        return 4
    return 7


def closest_1_2_seeks(positions):
    """Which table_0_0 a position with these positions looks for."""
    if positions == 1:
        return 0
    if positions == 2:
        return 1
    if positions == 4:
        return 3
    if positions == 5:
        return 4
    if positions == 6:
        return 7
    return 5


def closest_1_3_seeks(positions):
    """Which closest_0_2 a position with these positions looks for."""
    if positions == 3:
        return None
    if positions == 7:
        return "f"
    return "<s>"


def count_1_0_seeks(positions):
    """Which table_0_1 a position with these positions looks for."""
    if positions == 1:
        return None
    return 6


def count_1_1_seeks(closest_0_0):
    """Which closest_0_2 a position with these closest_0_0 looks for."""
    if closest_0_0 == "e":
        return "c"
    return "e"


def count_1_2_seeks(positions):
    """Which closest_0_2 a position with these positions looks for."""
    if positions == 1:
        return "c"
    if positions == 2:
        return "d"
    return "b"


def table_1_0_is(positions, table_0_1):
    """What it says of positions and table_0_1."""
    if positions == 1:
        if table_0_1 == 0:
            return 4
        if table_0_1 == 6:
            return 3
        if table_0_1 == 7:
            return 6
        return 2
    if positions == 2:
        if table_0_1 == 1:
            return 5
        if table_0_1 == 5:
            return 7
        if table_0_1 == 7:
            return 3
        return 4
    if positions == 3:
        if table_0_1 == 0:
            return 0
        if table_0_1 == 1:
            return 1
        if table_0_1 == 5:
            return 4
        return 5
    if positions == 4:
        if table_0_1 in (0, 6):
            return 1
        return 0
    if positions == 5:
        if table_0_1 == 0:
            return 4
        return 1
    if positions == 6:
        return 6
    return 4


def table_1_1_is(count_0_2):
    """What it says of count_0_2."""
    if count_0_2 == 1:
        return 4
    if count_0_2 == 2:
        return 2
    if count_0_2 == 3:
        return 6
    if count_0_2 in (4, 5):
        return 7
    return 1


TOKENS_VOTES = {
    "<s>": [-1, 1, -3, 5, 3, -3, 0],
    "a": [-13, -33, -21, -25, -33, -17, 49],
    "b": [-14, 23, -9, -21, -43, -27, 53],
    "c": [8, -30, 14, -36, -5, -25, -13],
    "d": [6, -6, 14, 51, -8, 1, -91],
    "e": [-5, -12, 16, 7, 17, -32, -44],
    "f": [-19, -48, -45, -59, -44, -17, 148],
}
POSITIONS_VOTES = {
    0: [-1, -1, -1, 1, 0, -1, -1],
    1: [-158, -178, 478, -309, 291, 684, -2039],
    2: [134, -149, 389, 679, 147, 89, -1796],
    3: [49, 479, -440, -179, 490, 30, -532],
    4: [-126, 281, 39, -338, 79, -277, 477],
    5: [154, -94, -215, 87, -471, -569, 785],
    6: [-251, -848, -579, -408, -1139, -463, 1686],
    7: [-771, -887, -1007, -843, -1024, -926, 1785],
}
CLOSEST_0_0_VOTES = {
    "<s>": [-438, -5, 4, 5, 18, -30, 241],
    "a": [369, 15, 72, 57, -2, 27, -691],
    "b": [14, 73, 87, -47, -37, 39, 58],
    "c": [97, 62, -77, -68, -47, 62, -5],
    "d": [7, -43, -78, 27, -21, -108, -1],
    "e": [-161, -47, -81, -108, -81, -49, 509],
    "f": [-11, 27, -97, -54, -113, 81, -62],
}
CLOSEST_0_1_VOTES = {
    0: [-56, -35, -44, -24, 5, -27, 56],
    1: [-33, 12, -2, -36, -20, -23, 32],
    2: [16, 2, 6, 12, 22, 2, -131],
    3: [-8, -40, 10, 4, -44, 11, 39],
    4: [15, -18, -11, -3, 3, -2, 71],
    5: [-12, -1, -6, 24, -35, 13, -51],
    6: [-34, -47, -47, -45, -45, -56, 29],
    7: [-53, -62, -61, -35, -89, -69, -17],
}
CLOSEST_0_2_VOTES = {
    "<s>": [28, -178, -146, -143, 26, -1, 477],
    "a": [135, -57, 103, -180, -112, -62, 21],
    "b": [38, 545, -145, -154, 3, 17, -646],
    "c": [94, -113, 527, -79, 20, 34, -608],
    "d": [72, -140, -126, 522, 38, 46, -646],
    "e": [-287, -104, -103, -151, -107, -81, 656],
    "f": [-228, -240, -270, -251, -249, -330, 468],
}
CLOSEST_0_3_VOTES = {
    "<s>": [-65, -97, 42, -218, -142, -13, 555],
    "a": [-123, -61, -84, -67, -7, -147, -446],
    "b": [82, 322, -109, 22, -89, 80, -371],
    "c": [-27, -109, -63, -117, -35, -99, 261],
    "d": [-29, -81, 74, 364, -201, -114, -164],
    "e": [12, -77, 82, -130, 406, 60, -463],
    "f": [-46, -3, -25, -82, -72, -31, 60],
}
TABLE_0_0_VOTES = {
    0: [-8, 6, 39, 17, 29, -8, -3],
    1: [1, 17, 28, 9, -2, 8, -45],
    2: [-10, 4, -11, -4, -17, -17, 36],
    3: [-5, -4, 49, -16, -53, 17, -54],
    4: [-49, -64, -60, -48, -65, -60, 62],
    5: [34, 71, 22, 28, 67, 10, -169],
    6: [-21, -66, -23, -4, -65, -25, 5],
    7: [-138, -130, -42, -149, -129, -97, 249],
}
TABLE_0_1_VOTES = {
    0: [47, 11, 32, 68, 84, 0, -152],
    1: [68, 21, 84, -61, -61, 0, -67],
    2: [-57, 1, 23, -5, 10, -84, 21],
    3: [9, 19, 42, 14, 21, 29, 8],
    4: [72, 27, -131, -56, -30, -130, 161],
    5: [-115, 30, 51, 88, -81, -84, -218],
    6: [-38, 8, -133, 26, -57, -42, 190],
    7: [-7, -39, 9, -225, -15, -71, 165],
}
CLOSEST_1_0_VOTES = {
    "<s>": [52, 37, 44, 47, -493, -21, 76],
    "a": [105, -210, -47, 52, -33, -132, -39],
    "b": [71, -328, 85, 51, 90, -47, 76],
    "c": [65, -1, -507, 60, 92, 3, 8],
    "d": [147, 79, 102, -315, 123, 46, 76],
    "e": [42, 49, 39, 87, 91, -34, -168],
    "f": [186, 70, 116, 135, -345, 33, -135],
}
CLOSEST_1_1_VOTES = {
    "<s>": [-28, -33, -31, -67, -47, -46, 145],
    "a": [96, 7, -44, -28, -41, -73, -117],
    "b": [1, 117, -38, -31, -56, -41, -81],
    "c": [-9, -18, 137, -64, -41, -59, -84],
    "d": [-44, -44, -19, 119, -36, -62, -18],
    "e": [10, -13, -36, -27, 115, -47, -116],
    "f": [-56, -28, -25, -45, -69, 116, -23],
}
CLOSEST_1_2_VOTES = {
    "<s>": [-22, -22, -4, -12, -12, -3, 12],
    "a": [106, -73, -64, -46, -40, -58, -145],
    "b": [16, 100, -31, -86, -83, -34, -78],
    "c": [-70, -95, 119, -53, -97, -40, -31],
    "d": [-91, -46, -103, 83, -89, -85, 90],
    "e": [-44, -70, -57, -67, 109, -47, -9],
    "f": [-68, -43, -81, -68, -83, 134, -146],
}
CLOSEST_1_3_VOTES = {
    0: [15, -9, 47, 36, 9, 30, 112],
    1: [-71, 186, 12, -711, -37, 30, -128],
    2: [59, -1932, 62, 135, 131, 69, -383],
    3: [-74, -72, -1756, -80, -28, -99, 531],
    4: [-87, -88, -148, -1193, -81, -111, 598],
    5: [75, 47, 117, 82, -1130, 79, -440],
    6: [55, 76, 47, 77, 101, 62, -525],
    7: [-11, -84, -92, -89, -21, -91, 139],
}
TABLE_1_0_VOTES = {
    0: [-100, -103, 51, 86, -82, 83, -18],
    1: [-114, -93, 74, 2, 102, 59, 27],
    2: [-60, 124, -84, -51, 66, 24, 12],
    3: [176, 37, -127, 167, 76, 138, -657],
    4: [18, -63, 7, -50, -45, 94, 62],
    5: [-57, -81, 117, -28, 2, 18, -32],
    6: [-124, 194, -161, -164, -211, -599, 667],
    7: [111, -92, 29, -126, -6, 48, -355],
}
TABLE_1_1_VOTES = {
    0: [-44, -27, -40, -14, -60, 233, -546],
    1: [-18, -38, -133, -22, 89, -498, 719],
    2: [44, 26, 24, 28, -10, 254, -265],
    3: [-79, 22, -16, -41, -19, -205, 151],
    4: [51, 29, -27, 35, 78, 360, -516],
    5: [-55, -21, -39, -50, 32, 97, -145],
    6: [29, 28, 59, -1, -77, -71, -61],
    7: [52, 3, 191, 46, -112, -539, 114],
}
COUNT_0_0_VOTES = [-6, 39, -19, 66, 0, 30, -93]
COUNT_0_1_VOTES = [-35, 99, 52, 48, -37, 68, -326]
COUNT_0_2_VOTES = [58, 41, 0, 35, 110, 69, -284]
COUNT_1_0_VOTES = [-105, -92, -80, -54, -90, -56, 417]
COUNT_1_1_VOTES = [88, 75, 112, 48, 193, 97, -747]
COUNT_1_2_VOTES = [124, 241, 159, 157, 105, 158, -1083]
BIAS = [54, 14, 92, -13, -89, -57, 33]


def label(
    tokens,
    positions,
    closest_0_0,
    closest_0_1,
    closest_0_2,
    closest_0_3,
    table_0_0,
    table_0_1,
    closest_1_0,
    closest_1_1,
    closest_1_2,
    closest_1_3,
    table_1_0,
    table_1_1,
    count_0_0,
    count_0_1,
    count_0_2,
    count_1_0,
    count_1_1,
    count_1_2,
):
    """The label with most votes; of equals the first."""
    votes = list(BIAS)
    for i in range(len(LABELS)):
        votes[i] += TOKENS_VOTES[tokens][i]
        votes[i] += POSITIONS_VOTES[positions][i]
        votes[i] += CLOSEST_0_0_VOTES[closest_0_0][i]
        votes[i] += CLOSEST_0_1_VOTES[closest_0_1][i]
        votes[i] += CLOSEST_0_2_VOTES[closest_0_2][i]
        votes[i] += CLOSEST_0_3_VOTES[closest_0_3][i]
        votes[i] += TABLE_0_0_VOTES[table_0_0][i]
        votes[i] += TABLE_0_1_VOTES[table_0_1][i]
        votes[i] += CLOSEST_1_0_VOTES[closest_1_0][i]
        votes[i] += CLOSEST_1_1_VOTES[closest_1_1][i]
        votes[i] += CLOSEST_1_2_VOTES[closest_1_2][i]
        votes[i] += CLOSEST_1_3_VOTES[closest_1_3][i]
        votes[i] += TABLE_1_0_VOTES[table_1_0][i]
        votes[i] += TABLE_1_1_VOTES[table_1_1][i]
        votes[i] += count_0_0 * COUNT_0_0_VOTES[i]
        votes[i] += count_0_1 * COUNT_0_1_VOTES[i]
        votes[i] += count_0_2 * COUNT_0_2_VOTES[i]
        votes[i] += count_1_0 * COUNT_1_0_VOTES[i]
        votes[i] += count_1_1 * COUNT_1_1_VOTES[i]
        votes[i] += count_1_2 * COUNT_1_2_VOTES[i]
    return LABELS[votes.index(max(votes))]


def run(body):
    """The label of each token of the body."""
    tokens = ["<s>", *body]
    positions = list(range(len(tokens)))
    ones = [1] * len(tokens)
    closest_0_0 = closest([closest_0_0_seeks(x) for x in positions], tokens, tokens)
    closest_0_1 = closest([closest_0_1_seeks(x) for x in tokens], tokens, positions)
    closest_0_2 = closest([closest_0_2_seeks(x) for x in positions], tokens, tokens)
    closest_0_3 = closest([closest_0_3_seeks(x) for x in positions], tokens, tokens)
    count_0_0 = count([count_0_0_seeks(x) for x in positions], tokens, ones)
    count_0_1 = count([count_0_1_seeks(x) for x in positions], positions, ones)
    count_0_2 = count([count_0_2_seeks(x) for x in positions], tokens, ones)
    pairs = zip(closest_0_1, positions, strict=True)
    table_0_0 = [table_0_0_is(a, b) for a, b in pairs]
    table_0_1 = [table_0_1_is(a, b) for a, b in zip(count_0_0, count_0_1, strict=True)]
    wanted = [closest_1_0_seeks(x) for x in positions]
    closest_1_0 = closest(wanted, table_0_1, closest_0_3)
    closest_1_1 = closest([closest_1_1_seeks(x) for x in positions], table_0_0, tokens)
    closest_1_2 = closest([closest_1_2_seeks(x) for x in positions], table_0_0, tokens)
    wanted = [closest_1_3_seeks(x) for x in positions]
    closest_1_3 = closest(wanted, closest_0_2, positions)
    count_1_0 = count([count_1_0_seeks(x) for x in positions], table_0_1, ones)
    count_1_1 = count([count_1_1_seeks(x) for x in closest_0_0], closest_0_2, ones)
    count_1_2 = count([count_1_2_seeks(x) for x in positions], closest_0_2, ones)
    table_1_0 = [table_1_0_is(a, b) for a, b in zip(positions, table_0_1, strict=True)]
    table_1_1 = [table_1_1_is(x) for x in count_0_2]
    rows = zip(
        tokens,
        positions,
        closest_0_0,
        closest_0_1,
        closest_0_2,
        closest_0_3,
        table_0_0,
        table_0_1,
        closest_1_0,
        closest_1_1,
        closest_1_2,
        closest_1_3,
        table_1_0,
        table_1_1,
        count_0_0,
        count_0_1,
        count_0_2,
        count_1_0,
        count_1_1,
        count_1_2,
        strict=True,
    )
    labels = [label(*row) for row in rows]
    return labels[1:]


if __name__ == "__main__":
    if sys.argv[1:]:
        print(*run("".join(sys.argv[1:])))
    else:
        for line in sys.stdin:
            print(json.dumps(run(json.loads(line))))
