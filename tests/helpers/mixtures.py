"""Every combination of the options that shape a mixture."""

import itertools

SEGMENTS, TOP_KS, ROUTER_RANKS, SHARED = (1, 2), (2, 0.4), (None, 3), (False, True)
COMBINATIONS = [
    {"segments": m, "top_k": k, "router_rank": r, "share_a": s}
    for m, k, r, s in itertools.product(SEGMENTS, TOP_KS, ROUTER_RANKS, SHARED)
]
EVERYTHING = COMBINATIONS[-1]


def named(options):
    """What a combination has, as the name of a test."""
    said = [f"{k}{'' if v is True else v}" for k, v in options.items() if v not in (None, False)]
    return "-".join(said)
