"""Plain, slow references: one expert and one token after the other, as the papers write it."""

import torch


def expert_mixture(
    x, a, b, router, router_down=None, *, num_experts, rank, top_k, scaling, routed=None
):
    """What the experts add, [..., out]; every argument a tensor in the layer's own layout.

    An A with fewer rows than experts have ranks is shared: expert e reads the part after that of
    expert e - 1, and the first after the last. The router may see another input, `routed`.
    """
    if num_experts > 1:
        seen = x if routed is None else routed
        if router_down is not None:
            seen = torch.nn.functional.linear(seen, router_down)
        logits = torch.nn.functional.linear(seen, router).reshape(-1, num_experts)
    rows = []
    for index, token in enumerate(x.reshape(-1, x.shape[-1])):
        if num_experts == 1:
            gates = {0: torch.ones(())}
        else:
            p = torch.softmax(logits[index].float(), dim=0)
            best = sorted(range(num_experts), key=p.tolist().__getitem__, reverse=True)[:top_k]
            total = sum(p[e] for e in best) if top_k > 1 else 1.0
            gates = {e: p[e] / total for e in best}
        out = torch.zeros(b.shape[0], dtype=x.dtype)
        for e, gate in gates.items():
            start = e * rank % len(a)
            a_e = a[start : start + rank]
            b_e = b[:, e * rank : (e + 1) * rank]
            out = out + scaling * gate.to(x.dtype) * (b_e @ (a_e @ token))
        rows.append(out)
    return torch.stack(rows).reshape(*x.shape[:-1], -1)


def load_balancing(x, router, router_down=None, *, top_k, mask):
    """N * sum_e f_e P_e over the tokens whose mask is 1; x is [B, S, in], mask [B, S]."""
    if router_down is not None:
        x = torch.nn.functional.linear(x, router_down)
    num_experts = router.shape[0]
    slots = [0] * num_experts
    mean = torch.zeros(num_experts)
    tokens = [t for t, m in zip(x.reshape(-1, x.shape[-1]), mask.reshape(-1), strict=True) if m]
    for token in tokens:
        p = torch.softmax((router @ token).float(), dim=0)
        mean = mean + p / len(tokens)
        for e in sorted(range(num_experts), key=p.tolist().__getitem__, reverse=True)[:top_k]:
            slots[e] += 1
    total = sum(slots)
    return num_experts * sum(slots[e] / total * mean[e] for e in range(num_experts))
