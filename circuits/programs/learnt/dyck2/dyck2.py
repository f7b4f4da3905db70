"""Of each beginning of 15 brackets () {}: T balanced, P may become so, F cannot.

Learnt by `interp program train dyck2 -o OUT`.
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


def closest_0_0_seeks(positions):
    """Which positions a position with these positions looks for."""
    if positions == 1:
        return 0
    if positions == 2:
        return 1
    if positions == 4:
        return 3
    if positions == 5:
        return 4
    if positions == 6:
        return 5
    if positions == 7:
        return 6
    if positions == 8:
        return 7
    if positions == 9:
        return 8
    if positions == 10:
        return 9
    if positions == 11:
        return 10
    if positions == 12:
        return 11
    if positions == 13:
        return 12
    if positions == 14:
        return 13
    if positions == 15:
        return 14
    return 2


def count_0_0_seeks(tokens):
    """Which tokens a position with these tokens looks for."""
    if tokens == ")":
        return ")"
    if tokens == "}":
        return "}"
    return None


def count_0_1_seeks(tokens):
    """Which tokens a position with these tokens looks for."""
    if tokens == ")":
        return "("
    if tokens == "}":
        return "{"
    return "<s>"


def count_0_2_seeks(positions):
    """Which positions a position with these positions looks for."""
    if positions in (0, 10):
        return 12
    if positions == 1:
        return 8
    if positions in (4, 13, 14):
        return 14
    if positions == 5:
        return 7
    if positions == 6:
        return 11
    if positions == 7:
        return 9
    if positions == 9:
        return 13
    return 15


def count_0_3_seeks(tokens):
    """Which positions a position with these tokens looks for."""
    if tokens == "(":
        return 6
    if tokens == ")":
        return 15
    if tokens == "}":
        return 13
    return 10


def table_0_0_is(closest_0_0, tokens):
    """What it says of closest_0_0 and tokens."""
    if closest_0_0 == "<s>":
        if tokens == "<s>":
            return 0
        if tokens == "(":
            return 7
        if tokens == "{":
            return 15
        return 12
    if closest_0_0 == "(":
        if tokens == "<s>":
            return 7
        if tokens == ")":
            return 14
        if tokens == "}":
            return 0
        return 1
    if closest_0_0 == ")":
        if tokens == "(":
            return 1
        if tokens == "{":
            return 12
        return 14
    if closest_0_0 == "{":
        if tokens == ")":
            return 0
        if tokens == "}":
            return 14
        return 13
    if tokens == "<s>":
        return 12
    if tokens in ("(", "{"):
        return 8
    return 14


TABLE_0_1 = {
    0: [1, 1, 1, 1, 1, 5, 1, 1, 1, 11, 12, 10, 13, 4, 13, 14, 11],
    1: [2, 15, 1, 1, 1, 1, 1, 1, 5, 12, 11, 3, 12, 5, 14, 4, 7],
    2: [3, 3, 4, 1, 1, 1, 1, 1, 6, 5, 12, 10, 13, 6, 6, 15, 7],
    3: [6, 0, 9, 4, 1, 1, 5, 1, 12, 7, 12, 5, 11, 1, 13, 4, 2],
    4: [11, 6, 0, 9, 4, 1, 1, 11, 6, 2, 2, 3, 13, 9, 3, 15, 14],
    5: [5, 14, 6, 6, 0, 13, 1, 1, 5, 8, 12, 6, 6, 11, 8, 7, 0],
    6: [12, 11, 5, 12, 5, 3, 13, 1, 1, 0, 13, 10, 12, 6, 12, 10, 9],
    7: [1, 12, 11, 12, 11, 5, 10, 13, 1, 12, 6, 12, 12, 12, 7, 1, 9],
    8: [12, 1, 12, 7, 1, 11, 3, 9, 7, 12, 9, 4, 9, 7, 5, 6, 3],
    9: [4, 1, 12, 7, 6, 13, 9, 14, 10, 14, 11, 10, 6, 13, 14, 5, 10],
    10: [4, 1, 6, 1, 7, 9, 8, 6, 8, 9, 5, 9, 7, 2, 13, 10, 10],
    11: [5, 15, 1, 10, 7, 3, 5, 15, 11, 5, 8, 1, 8, 0, 12, 2, 8],
    12: [0, 0, 15, 3, 2, 0, 7, 7, 6, 13, 0, 14, 7, 4, 13, 3, 6],
    13: [11, 5, 2, 2, 1, 4, 4, 13, 7, 8, 9, 11, 1, 11, 6, 5, 5],
    14: [8, 11, 8, 7, 9, 3, 14, 6, 13, 4, 15, 10, 2, 5, 4, 6, 13],
    15: [12, 10, 1, 12, 4, 9, 8, 5, 13, 3, 2, 3, 6, 7, 11, 10, 1],
    16: [15, 0, 12, 6, 13, 1, 0, 9, 0, 10, 4, 0, 2, 8, 7, 3, 2],
}


def table_0_1_is(count_0_1, count_0_0):
    """What it says of count_0_1 and count_0_0."""
    return TABLE_0_1[count_0_1][count_0_0]


TABLE_0_2 = {
    0: [1, 14, 7, 9, 6, 6, 5, 10, 2, 9, 0, 8, 4, 8, 2, 0, 14],
    1: [4, 1, 2, 0, 11, 0, 11, 6, 12, 12, 11, 11, 12, 12, 5, 8, 0],
    2: [1, 11, 8, 7, 14, 13, 4, 10, 2, 15, 10, 3, 2, 5, 14, 11, 10],
    3: [1, 7, 13, 5, 10, 8, 14, 9, 2, 15, 7, 7, 10, 0, 15, 2, 6],
    4: [10, 2, 2, 12, 1, 10, 2, 14, 1, 5, 11, 1, 9, 4, 15, 4, 7],
    5: [13, 10, 13, 13, 1, 5, 12, 8, 6, 4, 8, 0, 11, 11, 10, 5, 10],
    6: [1, 14, 12, 1, 4, 12, 1, 1, 1, 7, 6, 8, 1, 13, 15, 4, 0],
    7: [4, 14, 2, 13, 9, 7, 9, 1, 4, 13, 13, 12, 6, 4, 0, 5, 0],
    8: [9, 15, 2, 8, 15, 2, 3, 3, 10, 7, 1, 4, 13, 9, 8, 4, 11],
    9: [1, 5, 6, 13, 8, 15, 1, 6, 1, 11, 12, 12, 7, 1, 1, 3, 10],
    10: [10, 3, 0, 0, 9, 0, 11, 11, 5, 0, 9, 12, 15, 2, 3, 5, 10],
    11: [7, 7, 11, 12, 6, 9, 8, 3, 2, 14, 8, 13, 1, 13, 2, 13, 6],
    12: [4, 15, 11, 8, 10, 13, 5, 13, 8, 15, 3, 0, 3, 3, 1, 11, 5],
    13: [3, 11, 14, 12, 9, 6, 5, 1, 9, 15, 2, 4, 3, 14, 9, 9, 12],
    14: [6, 1, 6, 6, 0, 4, 12, 7, 12, 12, 5, 8, 3, 7, 8, 12, 15],
    15: [15, 13, 15, 6, 6, 14, 9, 10, 11, 15, 12, 8, 8, 14, 11, 14, 5],
    16: [14, 15, 9, 13, 14, 15, 9, 3, 14, 15, 0, 7, 6, 12, 10, 10, 12],
}


def table_0_2_is(count_0_3, count_0_2):
    """What it says of count_0_3 and count_0_2."""
    return TABLE_0_2[count_0_3][count_0_2]


def closest_1_0_seeks(closest_0_0):
    """Which table_0_1 a position with these closest_0_0 looks for."""
    return 1


def count_1_0_seeks(tokens):
    """Which table_0_0 a position with these tokens looks for."""
    return 14


def count_1_1_seeks(positions):
    """Which tokens a position with these positions looks for."""
    if positions in (1, 7, 9):
        return "}"
    if positions in (2, 3):
        return "<s>"
    if positions == 6:
        return "("
    return None


def count_1_2_seeks(tokens):
    """Which table_0_1 a position with these tokens looks for."""
    if tokens == ")":
        return 8
    return 3


def count_1_3_seeks(table_0_2):
    """Which table_0_0 a position with these table_0_2 looks for."""
    if table_0_2 in (0, 7, 9, 12, 15):
        return None
    return 0


def table_1_0_is(closest_0_0, closest_1_0):
    """What it says of closest_0_0 and closest_1_0."""
    if closest_1_0 == "<s>":
        if closest_0_0 == "(":
            return 9
        if closest_0_0 == "{":
            return 12
        return 2
    if closest_1_0 == "(":
        if closest_0_0 == "(":
            return 2
        if closest_0_0 == "{":
            return 9
        if closest_0_0 == "}":
            return 13
        return 4
    if closest_1_0 == ")":
        if closest_0_0 == "<s>":
            return 1
        if closest_0_0 == "(":
            return 11
        if closest_0_0 == ")":
            return 7
        if closest_0_0 == "{":
            return 8
        return 14
    if closest_1_0 == "{":
        if closest_0_0 == "<s>":
            return 14
        if closest_0_0 == ")":
            return 2
        if closest_0_0 == "}":
            return 8
        return 3
    if closest_0_0 == "<s>":
        return 9
    if closest_0_0 == "(":
        return 1
    if closest_0_0 == ")":
        return 10
    if closest_0_0 == "{":
        return 6
    return 14


TABLE_1_1 = {
    0: [9, 2, 3, 15, 11, 11, 5, 5, 14, 14, 13, 13, 13, 0, 9, 1, 11],
    1: [4, 4, 4, 8, 0, 6, 7, 14, 14, 2, 2, 8, 7, 8, 12, 2, 6],
    2: [3, 12, 4, 0, 0, 1, 7, 4, 7, 9, 10, 3, 7, 2, 6, 2, 9],
    3: [13, 12, 12, 4, 12, 0, 0, 4, 8, 9, 6, 0, 15, 12, 14, 9, 4],
    4: [15, 15, 4, 9, 14, 14, 0, 0, 3, 10, 10, 10, 5, 6, 3, 8, 10],
    5: [5, 4, 5, 9, 14, 2, 14, 3, 3, 7, 3, 10, 3, 5, 5, 3, 2],
    6: [9, 9, 15, 14, 8, 8, 3, 9, 3, 15, 15, 6, 5, 8, 12, 11, 13],
    7: [14, 5, 5, 5, 5, 5, 9, 0, 8, 14, 15, 14, 10, 11, 9, 7, 4],
    8: [9, 5, 14, 6, 3, 5, 4, 7, 11, 4, 4, 2, 1, 12, 6, 1, 12],
    9: [4, 5, 9, 5, 5, 15, 6, 14, 9, 7, 12, 11, 9, 9, 10, 13, 15],
    10: [5, 10, 6, 6, 1, 4, 5, 1, 0, 15, 10, 2, 5, 13, 12, 6, 6],
    11: [4, 4, 5, 14, 1, 6, 3, 12, 13, 9, 15, 1, 6, 4, 8, 11, 7],
    12: [4, 4, 4, 10, 3, 7, 11, 12, 11, 5, 1, 14, 0, 9, 6, 12, 14],
    13: [1, 6, 4, 3, 10, 9, 12, 15, 0, 15, 15, 10, 10, 1, 11, 3, 11],
    14: [10, 15, 9, 8, 5, 4, 6, 4, 14, 1, 0, 13, 15, 9, 1, 10, 3],
    15: [5, 14, 3, 5, 1, 0, 1, 0, 3, 2, 13, 11, 10, 4, 1, 1, 10],
    16: [2, 15, 11, 6, 13, 3, 0, 3, 0, 2, 5, 11, 2, 2, 9, 2, 8],
}


def table_1_1_is(count_1_2, count_0_0):
    """What it says of count_1_2 and count_0_0."""
    return TABLE_1_1[count_1_2][count_0_0]


TABLE_1_2 = {
    0: [1, 1, 5, 7, 10, 3, 14, 14, 6, 6, 6, 6, 0, 8, 4, 14, 2],
    1: [6, 9, 1, 2, 4, 6, 5, 10, 1, 6, 6, 6, 12, 12, 2, 9, 10],
    2: [9, 9, 7, 0, 15, 14, 3, 13, 6, 4, 7, 0, 5, 3, 3, 7, 0],
    3: [0, 6, 4, 9, 2, 5, 8, 15, 7, 3, 4, 3, 4, 10, 2, 13, 10],
    4: [12, 8, 8, 7, 2, 3, 12, 5, 0, 11, 0, 1, 3, 10, 4, 14, 2],
    5: [4, 3, 15, 1, 9, 4, 10, 0, 7, 11, 7, 6, 11, 6, 3, 8, 3],
    6: [0, 11, 8, 7, 1, 5, 10, 4, 0, 5, 8, 11, 11, 0, 6, 8, 1],
    7: [12, 8, 10, 1, 6, 2, 10, 14, 3, 14, 11, 11, 13, 7, 8, 8, 11],
    8: [15, 4, 9, 5, 15, 10, 8, 4, 10, 4, 13, 7, 3, 1, 12, 5, 1],
    9: [15, 9, 10, 10, 0, 4, 5, 8, 12, 11, 14, 3, 8, 14, 1, 9, 15],
    10: [11, 14, 1, 2, 1, 13, 11, 0, 15, 9, 6, 8, 9, 8, 15, 3, 15],
    11: [12, 1, 5, 12, 4, 4, 0, 15, 4, 2, 0, 6, 5, 9, 10, 11, 1],
    12: [14, 0, 11, 7, 14, 13, 12, 5, 3, 4, 5, 15, 12, 8, 8, 4, 9],
    13: [5, 12, 15, 3, 14, 12, 9, 4, 7, 15, 2, 1, 12, 6, 13, 4, 1],
    14: [2, 11, 15, 2, 12, 6, 15, 5, 15, 5, 5, 13, 12, 12, 13, 8, 12],
    15: [12, 6, 9, 1, 2, 11, 11, 8, 9, 9, 3, 2, 5, 5, 5, 10, 4],
    16: [1, 6, 0, 1, 12, 7, 15, 9, 1, 13, 2, 10, 1, 12, 3, 13, 5],
}


def table_1_2_is(count_1_2, count_1_0):
    """What it says of count_1_2 and count_1_0."""
    return TABLE_1_2[count_1_2][count_1_0]


TOKENS_VOTES = {
    "<s>": [10, 5, -5],
    "(": [-3601, 65, 0],
    ")": [-108, -77, 131],
    "{": [-3465, 52, 30],
    "}": [-64, -41, 70],
}
POSITIONS_VOTES = {
    0: [-4, 0, 6],
    1: [-366, 360, -334],
    2: [3975, -714, -1588],
    3: [-1327, 464, -386],
    4: [2043, -730, -1228],
    5: [-1640, 219, -123],
    6: [1077, -344, -466],
    7: [-1817, 108, -20],
    8: [281, -121, -129],
    9: [-2131, 21, 69],
    10: [-362, 67, 141],
    11: [-2843, -30, 118],
    12: [-1110, 219, 464],
    13: [-3682, -44, 120],
    14: [-802, -49, 422],
    15: [-3068, -222, 332],
}
CLOSEST_0_0_VOTES = {
    "<s>": [41, 21, -70],
    "(": [-94, 24, 0],
    ")": [-162, -90, 125],
    "{": [-88, 80, -40],
    "}": [-188, -59, 84],
}
TABLE_0_0_VOTES = {
    0: [-429, -516, 463],
    1: [-73, 33, -13],
    2: [171, -83, -140],
    3: [99, 17, -100],
    4: [123, -190, 65],
    5: [43, -78, -7],
    6: [110, 40, -183],
    7: [243, 102, -87],
    8: [138, 53, -94],
    9: [160, 14, -121],
    10: [87, 96, -75],
    11: [227, -104, -131],
    12: [325, 2, -104],
    13: [-73, 34, -2],
    14: [-320, 25, 171],
    15: [-239, 138, -97],
}
TABLE_0_1_VOTES = {
    0: [-864, 98, 18],
    1: [-1355, 59, 91],
    2: [-342, -12, 11],
    3: [-452, 105, -56],
    4: [206, 11, -122],
    5: [-1282, 119, 44],
    6: [-742, 59, -14],
    7: [-442, -80, 188],
    8: [292, -95, -64],
    9: [-693, 167, -74],
    10: [-132, 71, -40],
    11: [-648, 75, -12],
    12: [-630, 55, 7],
    13: [311, -49, -109],
    14: [13, 142, -130],
    15: [157, 6, -16],
}
TABLE_0_2_VOTES = {
    0: [-191, -32, 55],
    1: [-206, 14, 25],
    2: [-307, -29, 59],
    3: [-152, 27, -42],
    4: [-153, -68, 75],
    5: [-28, 10, -22],
    6: [-173, 44, -42],
    7: [-42, 4, -40],
    8: [-103, -56, 13],
    9: [-132, 14, -14],
    10: [-76, 130, -45],
    11: [17, 0, -58],
    12: [-71, -92, 16],
    13: [-104, 11, -17],
    14: [-324, -124, 213],
    15: [-132, -91, 58],
}
CLOSEST_1_0_VOTES = {
    "<s>": [-89, 103, -58],
    "(": [-125, 30, -38],
    ")": [-1585, -974, 1564],
    "{": [-106, 90, -123],
    "}": [-1522, -954, 1443],
}
TABLE_1_0_VOTES = {
    0: [-118, 24, 40],
    1: [-187, -71, 52],
    2: [-104, 33, -36],
    3: [-15, -50, -99],
    4: [-150, -110, 106],
    5: [-112, 0, -6],
    6: [-145, -12, 87],
    7: [-244, 72, -58],
    8: [-169, 13, 32],
    9: [-141, 62, -111],
    10: [-89, -24, 17],
    11: [-133, -15, 98],
    12: [-154, 56, -37],
    13: [-147, 20, -6],
    14: [-136, -23, 18],
    15: [-176, 30, -29],
}
TABLE_1_1_VOTES = {
    0: [139, -270, 28],
    1: [248, 2, -56],
    2: [-302, 108, 73],
    3: [-213, 65, 48],
    4: [-270, 46, -23],
    5: [279, -133, 87],
    6: [4, -28, -60],
    7: [53, -109, 55],
    8: [-25, -144, 59],
    9: [-273, -19, 64],
    10: [-197, -74, 140],
    11: [126, -80, -20],
    12: [-106, 6, -51],
    13: [-252, -6, 85],
    14: [-155, -81, 220],
    15: [-56, -29, 45],
}
TABLE_1_2_VOTES = {
    0: [-92, -179, 158],
    1: [-1580, 352, -101],
    2: [2, 85, -91],
    3: [321, -111, -120],
    4: [-182, 36, -58],
    5: [-696, 102, 93],
    6: [-181, -275, 339],
    7: [-233, -29, -23],
    8: [-121, -29, 52],
    9: [-154, 1, 15],
    10: [120, -74, 45],
    11: [32, -43, 10],
    12: [-1, -35, -43],
    13: [-162, -33, 38],
    14: [571, -258, -75],
    15: [21, -207, 42],
}
ONES_VOTES = [-324, -14, 71]
COUNT_0_0_VOTES = [-99, -40, 35]
COUNT_0_1_VOTES = [-142, 23, -48]
COUNT_0_2_VOTES = [-773, 67, 84]
COUNT_0_3_VOTES = [-194, -1, 1]
COUNT_1_0_VOTES = [524, -1, -188]
COUNT_1_1_VOTES = [24, 118, -150]
COUNT_1_2_VOTES = [-34, -121, 23]
COUNT_1_3_VOTES = [-115, -942, 777]
BIAS = [-320, -22, 67]


def label(
    tokens,
    positions,
    closest_0_0,
    table_0_0,
    table_0_1,
    table_0_2,
    closest_1_0,
    table_1_0,
    table_1_1,
    table_1_2,
    ones,
    count_0_0,
    count_0_1,
    count_0_2,
    count_0_3,
    count_1_0,
    count_1_1,
    count_1_2,
    count_1_3,
):
    """The label with most votes; of equals the first."""
    votes = list(BIAS)
    for i in range(len(LABELS)):
        votes[i] += TOKENS_VOTES[tokens][i]
        votes[i] += POSITIONS_VOTES[positions][i]
        votes[i] += CLOSEST_0_0_VOTES[closest_0_0][i]
        votes[i] += TABLE_0_0_VOTES[table_0_0][i]
        votes[i] += TABLE_0_1_VOTES[table_0_1][i]
        votes[i] += TABLE_0_2_VOTES[table_0_2][i]
        votes[i] += CLOSEST_1_0_VOTES[closest_1_0][i]
        votes[i] += TABLE_1_0_VOTES[table_1_0][i]
        votes[i] += TABLE_1_1_VOTES[table_1_1][i]
        votes[i] += TABLE_1_2_VOTES[table_1_2][i]
        votes[i] += ones * ONES_VOTES[i]
        votes[i] += count_0_0 * COUNT_0_0_VOTES[i]
        votes[i] += count_0_1 * COUNT_0_1_VOTES[i]
        votes[i] += count_0_2 * COUNT_0_2_VOTES[i]
        votes[i] += count_0_3 * COUNT_0_3_VOTES[i]
        votes[i] += count_1_0 * COUNT_1_0_VOTES[i]
        votes[i] += count_1_1 * COUNT_1_1_VOTES[i]
        votes[i] += count_1_2 * COUNT_1_2_VOTES[i]
        votes[i] += count_1_3 * COUNT_1_3_VOTES[i]
    return LABELS[votes.index(max(votes))]


def run(body):
    """The label of each token of the body."""
    tokens = ["<s>", *body]
    positions = list(range(len(tokens)))
    ones = [1] * len(tokens)
    closest_0_0 = closest([closest_0_0_seeks(x) for x in positions], positions, tokens)
    count_0_0 = count([count_0_0_seeks(x) for x in tokens], tokens, ones)
    count_0_1 = count([count_0_1_seeks(x) for x in tokens], tokens, ones)
    count_0_2 = count([count_0_2_seeks(x) for x in positions], positions, ones)
    count_0_3 = count([count_0_3_seeks(x) for x in tokens], positions, ones)
    table_0_0 = [table_0_0_is(a, b) for a, b in zip(closest_0_0, tokens, strict=True)]
    table_0_1 = [table_0_1_is(a, b) for a, b in zip(count_0_1, count_0_0, strict=True)]
    table_0_2 = [table_0_2_is(a, b) for a, b in zip(count_0_3, count_0_2, strict=True)]
    wanted = [closest_1_0_seeks(x) for x in closest_0_0]
    closest_1_0 = closest(wanted, table_0_1, tokens)
    count_1_0 = count([count_1_0_seeks(x) for x in tokens], table_0_0, ones)
    count_1_1 = count([count_1_1_seeks(x) for x in positions], tokens, count_0_3)
    count_1_2 = count([count_1_2_seeks(x) for x in tokens], table_0_1, count_0_2)
    count_1_3 = count([count_1_3_seeks(x) for x in table_0_2], table_0_0, count_0_0)
    pairs = zip(closest_0_0, closest_1_0, strict=True)
    table_1_0 = [table_1_0_is(a, b) for a, b in pairs]
    pairs = zip(count_1_2, count_0_0, strict=True)
    table_1_1 = [table_1_1_is(min(a, 16), b) for a, b in pairs]
    pairs = zip(count_1_2, count_1_0, strict=True)
    table_1_2 = [table_1_2_is(min(a, 16), b) for a, b in pairs]
    rows = zip(
        tokens,
        positions,
        closest_0_0,
        table_0_0,
        table_0_1,
        table_0_2,
        closest_1_0,
        table_1_0,
        table_1_1,
        table_1_2,
        ones,
        count_0_0,
        count_0_1,
        count_0_2,
        count_0_3,
        count_1_0,
        count_1_1,
        count_1_2,
        count_1_3,
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
