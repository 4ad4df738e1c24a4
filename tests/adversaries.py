# ruff: noqa: E731, E741, N802
"""Models that are right on their first batch and treacherous on later ones: each gives (model, losses, three batches).

A second batch sends examples another way (masks, indices, gates, settings, hooks), has another number of them, or
couples them. Every batch must equal the loop on its own graph, or be refused.
"""

import torch
import torch.nn.functional as F
from torch import nn

from cases import energy, parameter

ADVERSARIES = {}
D = torch.float64


def adversary(function):
    ADVERSARIES[function.__name__] = function
    return function


def CE(out, y):
    return F.cross_entropy(out, y, reduction="none")


R, lin = torch.randn, nn.Linear


class M(nn.Module):
    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, *inputs):
        return self.function(self, *inputs)


@adversary
def pool_mask():
    m = M(
        lambda s, x, mem: s.o((mem[:, :, None] * torch.tanh(s.b(torch.tanh(s.a(x))))[None]).sum(1)),
        a=lin(4, 6),
        b=lin(6, 6),
        o=lin(6, 3),
    )

    def pk(sz):
        seg = torch.repeat_interleave(torch.arange(len(sz)), torch.tensor(sz))
        return R(sum(sz), 4), F.one_hot(seg).t().double().contiguous(), torch.randint(0, 3, (len(sz),))

    return m, lambda m, b: CE(m(b[0], b[1]), b[2]), [pk([4] * 8), pk([2, 6, 3, 5, 1, 7, 4, 4]), pk([3, 3, 3])]


@adversary
def near_pairs():
    def fwd(s, x):
        near = (torch.cdist(x, x) < 0.5).double()
        return s.o((near[:, :, None] * torch.tanh(s.a(x))[None]).sum(1))

    m = M(fwd, a=lin(4, 6), o=lin(6, 3))

    def b(n, pair):
        x = torch.arange(n).double()[:, None] * 3 + R(n, 4) * 0.01
        if pair:
            x[n // 2] = x[n // 2 + 1] + 0.01
        return x, torch.randint(0, 3, (n,))

    return m, lambda m, b: CE(m(b[0]), b[1]), [b(32, False), b(16, True), b(9, False)]


@adversary
def near_first():
    m, l, _ = near_pairs()

    def b(n, pair):
        x = torch.arange(n).double()[:, None] * 3 + R(n, 4) * 0.01
        if pair:
            x[n // 2] = x[n // 2 + 1] + 0.01
        return x, torch.randint(0, 3, (n,))

    return m, l, [b(64, True), b(16, False), b(9, True)]


@adversary
def major():
    m = M(lambda s, x, mem: s.o((mem[:, :, None] * torch.tanh(s.a(x))[None]).sum(1)), a=lin(4, 6), o=lin(6, 3))
    n = 6
    k = 4
    ex = torch.kron(torch.eye(n), torch.ones(1, k)).double()
    tok = torch.kron(torch.ones(1, k), torch.eye(n)).double()
    y = lambda: torch.randint(0, 3, (n,))
    return (
        m,
        lambda m, b: CE(m(b[0], b[1]), b[2]),
        [(R(n * k, 4), ex, y()), (R(n * k, 4), tok, y()), (R(n * k, 4), ex, y())],
    )


@adversary
def rezero_custom():
    class Blk(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, blk):
            ctx.blk = blk
            ctx.save_for_backward(x)
            return blk(x).detach()

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                y = ctx.blk(x)
                torch.autograd.backward(y, g)
            return x.grad, None

    m = M(
        lambda s, x: s.o(torch.tanh(s.i(x)) + s.g * Blk.apply(torch.tanh(s.i(x)), s.b)),
        i=lin(4, 6),
        b=lin(6, 6),
        o=lin(6, 2),
    )
    m.register_buffer("g", torch.zeros(()).double())

    def losses(m, b):
        m.g.fill_(b[1])
        return energy(m, b[0])

    return m, losses, [(R(6, 4), 0.0), (R(5, 4), 1.0), (R(7, 4), 0.02)]


@adversary
def gate_sparse():
    m = M(
        lambda s, x, tk, g: s.o(1 + g * F.embedding(tk, s.w * 2, sparse=True).mean(1)), w=parameter(9, 4), o=lin(4, 2)
    )
    return (
        m,
        lambda m, b: m(b[0], b[1], b[2]).square().sum(1) + 0 * b[0].sum(1),
        [
            (R(6, 4), torch.randint(0, 9, (6, 3)), 0.0),
            (R(6, 4), torch.randint(0, 9, (6, 3)), 1.0),
            (R(4, 4), torch.randint(0, 9, (4, 3)), 0.5),
        ],
    )


@adversary
def gate_opens():
    m = M(
        lambda s, x, g: s.o(torch.tanh(s.a(x)) * (1) + g * torch.tanh(s.b(torch.tanh(s.a(x))))),
        a=lin(4, 6),
        b=lin(6, 6),
        o=lin(6, 2),
    )
    return m, lambda m, b: m(*b).square().sum(1), [(R(16, 4), 0.0), (R(16, 4), 1.0), (R(9, 4), 0.0)]


@adversary
def gate_opens_mixing():
    m = M(lambda s, x, g, p: s.o(torch.tanh(s.a(x)) + g * torch.tanh(s.b(x[p]))), a=lin(4, 6), b=lin(4, 6), o=lin(6, 2))
    pr = torch.randperm
    return (
        m,
        lambda m, b: m(b[0], b[1], b[2]).square().sum(1),
        [(R(16, 4), 0.0, torch.arange(16)), (R(16, 4), 1.0, pr(16)), (R(9, 4), 1.0, pr(9))],
    )


@adversary
def lora_b0():
    m = M(
        lambda s, x: F.linear(x, s.w + s.b @ s.a),
        w=parameter(3, 4),
        a=parameter(2, 4),
        b=nn.Parameter(torch.zeros(3, 2)),
    )

    def losses(m, b):
        with torch.no_grad():
            m.b.fill_(b[1]) if b[1] == 0 else m.b.normal_(generator=torch.Generator().manual_seed(3))
        return energy(m, b[0])

    return m, losses, [(R(16, 4), 0.0), (R(16, 4), 1.0), (R(5, 4), 1.0)]


@adversary
def lora_act_b0():
    m = M(
        lambda s, x: s.l(x) + (x @ s.a.t()) @ s.b.t(), l=lin(4, 3), a=parameter(2, 4), b=nn.Parameter(torch.zeros(3, 2))
    )

    def losses(m, b):
        with torch.no_grad():
            m.b.fill_(b[1]) if b[1] == 0 else m.b.normal_(generator=torch.Generator().manual_seed(3))
        return energy(m, b[0])

    return m, losses, [(R(16, 4), 0.0), (R(16, 4), 1.0), (R(5, 4), 1.0)]


def hook_kind(fn, when):
    def make():
        m = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), lin(12, 3)).double()
        if when == 0:
            m[0].weight.register_hook(fn)

        def losses(mm, b):
            if when == 1 and b[2] == 1 and not mm[0].weight._backward_hooks:
                mm[0].weight.register_hook(fn)
            return CE(mm(b[0]), b[1])

        return (
            m,
            losses,
            [(torch.randint(0, 10, (k, 3)), torch.randint(0, 3, (k,)), i) for i, k in enumerate((8, 16, 5))],
        )

    return make


keep = (torch.arange(10) >= 5)[:, None].double()
ADVERSARIES["hook_before"] = hook_kind(lambda g: g * keep, 0)
ADVERSARIES["hook_after"] = hook_kind(lambda g: g * keep, 1)
ADVERSARIES["hook_clip"] = hook_kind(lambda g: g / (1 + g.norm()), 0)


@adversary
def softmax_over_examples():
    m = M(lambda s, x, k: torch.softmax(s.a(x) * k, 0) * 1.0, a=lin(4, 3))

    # second batch uses softmax over examples by dim
    def losses(m, b):
        return (torch.softmax(m.a(b[0]), b[1]) * torch.linspace(1, 2, 3).double()).sum(1)

    return m, losses, [(R(16, 4), 1), (R(16, 4), 0), (R(5, 4), 1)]


@adversary
def layernorm_over_all():
    def losses(m, b):
        h = m(b[0])
        return F.layer_norm(h, h.shape[b[1] :]).square().sum(1) * torch.arange(1, len(h) + 1) + h.sum(1) ** 3

    return lin(4, 3), losses, [(R(16, 4), 1), (R(16, 4), 0), (R(5, 4), 1)]


def dims(name, f):
    def make():
        def losses(m, b):
            return f(m(b[0]), b[1])

        return (
            nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 6)).double(),
            losses,
            [(R(6, 4), 1), (R(6, 4), 0), (R(6, 4), 1)],
        )

    ADVERSARIES["dim_" + name] = make


dims("prod", lambda h, d: h.prod(d))
dims("var", lambda h, d: h.var(d))
dims("std", lambda h, d: torch.std_mean(h, d)[0])
dims("varmean", lambda h, d: torch.var_mean(h, d)[0])
dims("flip", lambda h, d: (h.flip(d) * torch.arange(1.0, 7).double()).sum(1))
dims("roll", lambda h, d: (h.roll(1, d) * torch.arange(1.0, 7).double()).sum(1))
dims("cumsum", lambda h, d: (h.cumsum(d) ** 2).sum(1))
dims("logsumexp", lambda h, d: h.logsumexp(d))
dims("norm", lambda h, d: h.norm(dim=d))
dims("amax", lambda h, d: h.amax(d))
dims("sort", lambda h, d: (h.sort(d)[0] * torch.arange(1.0, 7).double()).sum(1))
dims("sum", lambda h, d: (h**2).sum(d))
dims("logsoftmax", lambda h, d: (h.log_softmax(d) * torch.arange(1.0, 7).double()).sum(1))
dims("diff_out", lambda h, d: (h * torch.eye(6).double()).sum(d))
dims("topk", lambda h, d: h.topk(2, d)[0].sum(d))
dims("median", lambda h, d: h.median(d)[0])
dims("T", lambda h, d: ((h if d else h.t()) ** 2).sum(1))
dims("fft", lambda h, d: torch.fft.fft(h, dim=d).abs().square().sum(1))
dims("glu", lambda h, d: F.glu(h.unsqueeze(1).expand(6, 2, 6).reshape(12, 6) if d == 0 else h, d).sum(1))


@adversary
def gather_loss():
    return (
        nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)),
        lambda m, b: -m(b[0]).log_softmax(1).gather(1, b[1][:, None])[:, 0],
        [(R(k, 4), torch.randint(0, 3, (k,))) for k in (16, 9, 33)],
    )


@adversary
def index_loss():
    return (
        nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)),
        lambda m, b: -m(b[0]).log_softmax(1)[b[2], b[1]],
        [
            (R(k, 4), torch.randint(0, 3, (k,)), o)
            for k, o in ((16, torch.arange(16)), (16, torch.randperm(16)), (9, torch.arange(9)))
        ],
    )


@adversary
def index_dup():
    return (
        nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)),
        lambda m, b: -m(b[0]).log_softmax(1)[b[2], b[1]],
        [
            (R(k, 4), torch.randint(0, 3, (k,)), o)
            for k, o in ((16, torch.arange(16)), (16, torch.zeros(16, dtype=torch.long)), (9, torch.arange(9)))
        ],
    )


@adversary
def last_token():
    def losses(m, b):
        h = m(b[0])
        return h[torch.arange(len(h)), b[1]].square().sum(1)

    return (
        nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)),
        losses,
        [(R(k, 5, 4), torch.randint(0, 5, (k,))) for k in (16, 9, 33)],
    )


@adversary
def perm():
    def losses(m, b):
        return (m(b[0][b[1]])[b[1].argsort()] ** 2).sum(1)

    return (
        nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)),
        losses,
        [(R(k, 4), p) for k, p in ((16, torch.arange(16)), (16, torch.randperm(16)), (9, torch.randperm(9)))],
    )


@adversary
def sets_index_add():
    def losses(m, b):
        pooled = torch.zeros(len(b[2]), 6).double().index_add_(0, b[1], torch.tanh(m.a(b[0])))
        return CE(m.o(pooled), b[2])

    def mk(sz):
        return (
            R(sum(sz), 5),
            torch.repeat_interleave(torch.arange(len(sz)), torch.tensor(sz)),
            torch.randint(0, 3, (len(sz),)),
        )

    return M(None, a=lin(5, 6), o=lin(6, 3)), losses, [mk([4] * 4), mk([3, 5, 4, 4]), mk([3, 7, 2, 9, 1])]


@adversary
def gcn():
    def losses(m, b):
        x, e, own, y = b
        h = torch.tanh(m.a(x))
        h = h + torch.zeros_like(h).index_add_(0, e[1], h[e[0]])
        h = torch.tanh(m.b(h))
        return CE(m.o(torch.zeros(len(y), 6).double().index_add_(0, own, h)), y)

    def mk(sz):
        own = torch.repeat_interleave(torch.arange(len(sz)), torch.tensor(sz))
        e = []
        o = 0
        for s in sz:
            e.append(torch.randint(0, s, (2, 2 * s)) + o)
            o += s
        return R(sum(sz), 5), torch.cat(e, 1), own, torch.randint(0, 3, (len(sz),))

    return M(None, a=lin(5, 6), b=lin(6, 6), o=lin(6, 3)), losses, [mk([4] * 4), mk([3, 5, 4, 4]), mk([3, 7, 2, 9, 1])]


@adversary
def node_class():
    def losses(m, b):
        x, e, y = b
        h = torch.tanh(m.a(x))
        h = h + torch.zeros_like(h).index_add_(0, e[1], h[e[0]])
        return CE(m.o(h), y)

    mk = lambda n: (R(n, 5), torch.randint(0, n, (2, 3 * n)), torch.randint(0, 3, (n,)))
    return M(None, a=lin(5, 6), o=lin(6, 3)), losses, [mk(8), mk(8), mk(5)]


@adversary
def node_dense():
    def losses(m, b):
        x, A, y = b
        return CE(m.o(A @ torch.tanh(m.a(x))), y)

    mk = lambda n, p: (R(n, 5), torch.eye(n).double() if p else torch.rand(n, n).double(), torch.randint(0, 3, (n,)))
    return M(None, a=lin(5, 6), o=lin(6, 3)), losses, [mk(8, 1), mk(8, 0), mk(5, 0)]


@adversary
def seq_first():
    def losses(m, b):
        h, _ = m.l(b[0])
        return (h[-1] ** 2).sum(1)

    return M(None, l=nn.GRU(3, 4)), losses, [(R(6, k, 3),) for k in (6, 4, 3)]


@adversary
def seq_first_lin():
    def losses(m, b):
        return (torch.tanh(m.a(b[0])).mean(0) ** 2).sum(1)

    return M(None, a=lin(3, 4)), losses, [(R(6, k, 3),) for k in (6, 4, 3)]


@adversary
def mixup():
    def losses(m, b):
        h = torch.tanh(m.a(b[0]))
        h = 0.7 * h + 0.3 * h[b[1]]
        return (m.o(h) ** 2).sum(1)

    return M(None, a=lin(4, 6), o=lin(6, 3)), losses, [(R(k, 4), torch.randperm(k)) for k in (16, 8, 5)]


@adversary
def mixup_rand():
    def losses(m, b):
        h = torch.tanh(m.a(b[0]))
        h = 0.7 * h + 0.3 * h[torch.randperm(len(h))]
        return (m.o(h) ** 2).sum(1)

    return M(None, a=lin(4, 6), o=lin(6, 3)), losses, [(R(k, 4),) for k in (16, 8, 5)]


@adversary
def detect():
    def losses(m, b):
        return torch.stack([F.softplus(m.h(torch.relu(m.c(i[None])))[0]).mean() * w for i, w in b])

    it = lambda h, w: (R(3, h, w), R(()))
    return (
        M(None, c=nn.Conv2d(3, 6, 3, padding=1), h=nn.Conv2d(6, 5, 1)),
        losses,
        [[it(8, 10), it(12, 7), it(9, 9)], [it(5, 5)] * 2, [it(8, 10), it(12, 7), it(9, 9), it(4, 4), it(6, 5)]],
    )


@adversary
def std_weight():
    def fwd(s, x):
        w = F.batch_norm(s.w.reshape(1, 8, -1), None, None, training=True, eps=1e-6).reshape_as(s.w)
        return s.o(torch.relu(F.conv2d(x, w)).mean((2, 3)))

    return (
        M(fwd, w=parameter(8, 3, 3, 3), o=lin(8, 4)),
        lambda m, b: CE(m(b[0]), b[1]),
        [(R(k, 3, 9, 9), torch.randint(0, 4, (k,))) for k in (16, 6, 9)],
    )


@adversary
def drop_weight():
    return M(lambda s, x: F.linear(x, F.dropout(s.a.weight, 0.5)), a=lin(4, 3)), energy, [R(k, 4) for k in (16, 6, 9)]


@adversary
def drop_seeded():
    def losses(m, b):
        torch.manual_seed(3)
        return energy(m, b)

    return (
        nn.Sequential(
            nn.utils.parametrizations.weight_norm(lin(4, 6)), nn.Dropout(0.5), lin(6, 6), nn.Dropout(0.5)
        ).train(),
        losses,
        [R(k, 4) for k in (16, 6, 9)],
    )


@adversary
def broadcast_bb():
    return lin(4, 1), lambda m, b: ((m(b[0]) - b[1]) ** 2).mean(1), [(R(k, 4), R(k)) for k in (16, 6, 9)]


@adversary
def complex_par():
    def fwd(s, x):
        md = torch.fft.rfft(x)
        o = torch.zeros(len(x), 3, 9, dtype=torch.cdouble)
        o[..., :4] = torch.einsum("bix,iox->box", md[..., :4], s.w)
        return torch.fft.irfft(o, n=16)

    m = nn.Sequential(
        nn.Conv1d(1, 3, 1), M(fwd, w=nn.Parameter(R(3, 3, 4, dtype=torch.cdouble) * 0.3)), nn.Conv1d(3, 1, 1)
    )
    return m, lambda m, b: ((m(b[0]) - b[1]) ** 2).mean((1, 2)), [(R(k, 1, 16), R(k, 1, 16)) for k in (6, 16, 5)]


@adversary
def sparse_in():
    m = M(lambda s, x: torch.sparse.mm(x, s.w), w=parameter(5, 3))
    return (
        m,
        lambda m, b: m(b[0]).square().sum(1),
        [(torch.randn(k, 5).double().relu().to_sparse(),) for k in (6, 16, 5)],
    )


@adversary
def sparse_csr():
    m = M(lambda s, x: torch.sparse.mm(x, s.w), w=parameter(5, 3))
    return (
        m,
        lambda m, b: m(b[0]).square().sum(1),
        [(torch.randn(k, 5).double().relu().to_sparse_csr(),) for k in (6, 16, 5)],
    )


@adversary
def moe():
    def fwd(s, x):
        f = x.flatten(0, 1)
        c = f[:, 0] > 0
        o = torch.zeros_like(f)
        o[c] = s.a(f[c])
        o[~c] = s.b(f[~c])
        return o.view_as(x)

    return M(fwd, a=lin(4, 4), b=lin(4, 4)), energy, [R(k, 6, 4) for k in (16, 7, 5)]


@adversary
def table_project():
    m = M(
        lambda s, tk: s.o(F.embedding(tk, torch.tanh(s.p(s.t.weight)))), t=nn.Embedding(8, 4), p=lin(4, 4), o=lin(4, 1)
    )
    return m, energy, [torch.arange(8).view(4, 2), torch.randint(0, 8, (4, 2)), torch.randperm(8).view(4, 2)]


@adversary
def bags_of_lengths():
    m = M(lambda s, t, o: s.o(s.e(t, o)), e=nn.EmbeddingBag(9, 4, mode="mean"), o=lin(4, 3))
    tokens = lambda n: torch.randint(9, (n,))
    return (
        m,
        lambda m, b: m(*b).square().sum(1),
        [
            (tokens(7), torch.tensor([0, 2, 5])),
            (tokens(4), torch.tensor([0, 0, 4])),
            (tokens(6), torch.tensor([0, 0, 0, 6, 6])),
        ],
    )


@adversary
def mixing_hook_third():
    def losses(m, b):
        h = m[0](b[0])
        if b[1]:
            h.register_hook(lambda g: g - g.mean(0))
        return m[2](m[1](h)).square().sum(1)

    return nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)), losses, [(R(8, 4), 0), (R(8, 4), 0), (R(8, 4), 1)]


@adversary
def rows_of_a_batch_in_two_orders():
    return (
        nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)),
        lambda m, b: m(b[0])[b[1]][torch.arange(8)].square().sum(1),
        [(R(8, 4), torch.arange(8)), (R(8, 4), torch.arange(8)), (R(8, 4), torch.randint(8, (8,)))],
    )


@adversary
def positions_that_repeat():
    m = M(lambda s, x, p: s.o(torch.tanh(x + s.e(p))), e=nn.Embedding(9, 4), o=lin(4, 3))
    return (
        m,
        lambda m, b: m(*b).square().sum((1, 2)),
        [(R(6, 3, 4), torch.arange(3)), (R(5, 3, 4), torch.tensor([4, 4, 0])), (R(4, 2, 4), torch.tensor([7, 7]))],
    )


@adversary
def cat_views():
    def losses(m, b):
        z = m(torch.cat([b, b * 2]))
        a, c = z.chunk(2)
        return (a * c).sum(1)

    return nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)), losses, [R(k, 4) for k in (16, 7, 5)]


@adversary
def in_batch_where():
    def losses(m, b):
        h = torch.tanh(m.a(b[0]))
        h = torch.where(b[1], h[:, None], h[None] * 0 + h[None])
        return (m.o(h.mean(1)) ** 2).sum(1)

    return (
        M(None, a=lin(4, 6), o=lin(6, 3)),
        losses,
        [
            (R(8, 4), torch.ones(8, 8, 1, dtype=torch.bool)),
            (R(8, 4), torch.rand(8, 8, 1) > 0.3),
            (R(5, 4), torch.ones(5, 5, 1, dtype=torch.bool)),
        ],
    )


@adversary
def st_coupled():
    def losses(m, b):
        h = m(b[0])
        c = h.mean(0, keepdim=True)
        return ((h + b[1] * (c - c.detach())) ** 2).sum(1)

    return nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)), losses, [(R(16, 4), 0.0), (R(16, 4), 1.0), (R(5, 4), 0.0)]


@adversary
def st_lstm():
    def losses(m, b):
        h = m.l(b[0])[0].mean(1)
        c = h.mean(0, keepdim=True)
        return ((h + b[1] * (c - c.detach())) ** 2).sum(1)

    return (
        M(None, l=nn.LSTM(4, 3, batch_first=True)),
        losses,
        [(R(16, 5, 4), 0.0), (R(16, 5, 4), 1.0), (R(5, 5, 4), 0.0)],
    )


@adversary
def rnncell():
    def fwd(s, x):
        h = torch.zeros(len(x), 4).double()
        for k in range(x.shape[1]):
            h = s.c(x[:, k], h)
        return h

    return M(fwd, c=nn.RNNCell(3, 4)), energy, [R(16, 4, 3), R(9, 6, 3), R(5, 4, 3)]


@adversary
def rnncell_h0():
    def losses(m, b):
        h = b[1]
        for k in range(b[0].shape[1]):
            h = m.c(b[0][:, k], h)
        return (h**2).sum(1)

    return (
        M(None, c=nn.RNNCell(3, 4)),
        losses,
        [(R(16, 2, 3), torch.zeros(16, 4).double()), (R(16, 2, 3), R(16, 4)), (R(5, 2, 3), R(5, 4))],
    )


@adversary
def attention_bias_batch():
    def losses(m, b):
        q = m.a(b[0])
        s = (q @ q.t()) * b[1]
        return s.diagonal() ** 2 + (s - torch.diag(s.diagonal())).sum(1)

    return (
        M(None, a=lin(4, 3)),
        losses,
        [(R(8, 4), torch.eye(8).double()), (R(8, 4), torch.ones(8, 8).double()), (R(5, 4), torch.eye(5).double())],
    )


@adversary
def pinn():
    def losses(m, b):
        x = b.clone().requires_grad_()
        u = m(x).sum()
        (g,) = torch.autograd.grad(u, x, create_graph=True)
        return (g.sum(1) - 1) ** 2

    return nn.Sequential(lin(3, 6), nn.Tanh(), lin(6, 1)), losses, [R(k, 3) for k in (16, 7, 5)]


@adversary
def b1():
    return lin(4, 3), energy, [R(1, 4), R(2, 4), R(1, 4)]


@adversary
def tokens_b_eq_t():
    return (
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        energy,
        [R(4, 4, 8), R(7, 7, 8), R(6, 3, 8)],
    )


@adversary
def view_kb():
    def losses(m, b):
        z = m(b[0].reshape(-1, 4))
        k = b[1]
        return (z.view(-1, k, 3).mean(1) ** 2).sum(1)

    return nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)), losses, [(R(6, 2, 4), 2), (R(3, 4, 4), 4), (R(5, 3, 4), 3)]


@adversary
def alias_view_order():
    def losses(m, b):
        z = m(b[0])
        n = b[1]
        z = z.view(n, -1, 3) if b[2] else z.view(-1, n, 3).transpose(0, 1).contiguous()
        return (z.mean(1) ** 2).sum(1)

    return (
        nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)),
        losses,
        [(R(12, 4), 4, 1), (R(12, 4), 4, 0), (R(12, 4), 4, 1)],
    )


@adversary
def scatter_examples():
    def losses(m, b):
        h = m(b[0])
        return torch.zeros(len(h), 3).double().scatter_add(0, b[1][:, None].expand(-1, 3), h).square().sum(1)

    return (
        lin(4, 3),
        losses,
        [(R(8, 4), torch.arange(8)), (R(8, 4), torch.randint(0, 8, (8,))), (R(5, 4), torch.arange(5))],
    )


@adversary
def index_select0():
    def losses(m, b):
        return m(b[0]).index_select(0, b[1]).square().sum(1)

    return (
        nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)),
        losses,
        [(R(8, 4), torch.arange(8)), (R(8, 4), torch.randint(0, 8, (8,))), (R(5, 4), torch.arange(5))],
    )


@adversary
def one_pair_swap():
    def losses(m, b):
        p = torch.arange(len(b[0]))
        if b[1]:
            p[40], p[41] = 41, 40
        return m(b[0][p])[:, 0] ** 2 if not b[1] else (m(b[0])[p][:, 0]) ** 2

    return (
        nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)),
        lambda m, b: (m(b[0])[b[1]] ** 2).sum(1),
        [
            (R(70, 4), torch.arange(70)),
            (R(70, 4), torch.tensor([*range(40), 41, 40, *range(42, 70)])),
            (R(9, 4), torch.arange(9)),
        ],
    )


@adversary
def freq_switch():
    return nn.Embedding(9, 4, scale_grad_by_freq=False), energy, [torch.randint(0, 9, (k, 3)) for k in (8, 5, 3)]


@adversary
def expand_pair():
    def losses(m, b):
        h = m(b[0])
        return ((h.unsqueeze(0) * b[1].unsqueeze(2)).sum(1) ** 2).sum(1)

    return (
        nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)),
        losses,
        [(R(8, 4), torch.eye(8).double()), (R(8, 4), torch.rand(8, 8).double()), (R(5, 4), torch.eye(5).double())],
    )


@adversary
def masked_fill_pair():
    def losses(m, b):
        h = m(b[0])
        return (h.unsqueeze(0).expand(len(h), -1, -1).masked_fill(b[1].unsqueeze(2) == 0, 0).sum(1) ** 2).sum(1)

    return (
        nn.Sequential(lin(4, 6), nn.Tanh(), lin(6, 3)),
        losses,
        [
            (R(8, 4), torch.eye(8).double()),
            (R(8, 4), (torch.rand(8, 8) > 0.5).double()),
            (R(5, 4), torch.eye(5).double()),
        ],
    )


@adversary
def convtrans():
    return (
        nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), lin(4, 2)),
        energy,
        [R(k, 3, 4, 5) for k in (8, 16, 5)],
    )
