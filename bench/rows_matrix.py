"""The rows of the kernel benchmark around matrix products: attention, decode attention, linear + cross-entropy."""

import itertools
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from bench import peers
from bench.measure import OURS, Work
from bench.row import Goal, Row, normal, of_copy, with_compile
from bench.rows import row_by_row
from kernels import attention, attention_backward, decode, linear_cross_entropy, paged_prefill
from kernels.documents import Documents

TINY_HEADS = {"heads": 4, "kv_heads": 2, "head_dim": 16}

# ---- attention -------------------------------------------------------------------------------------------------------


def attention_inputs(size: dict, device: torch.device, dtype: torch.dtype, seed: int) -> SimpleNamespace:
    """q, k and v as views of the packed product, documents of equal length (the last one shorter)."""
    tokens, heads, kv_heads, head_dim = (size[key] for key in ("tokens", "heads", "kv_heads", "head_dim"))
    options = {"device": device, "dtype": dtype}
    packed = normal(tokens, (heads + 2 * kv_heads) * head_dim, **options, seed=2 * seed)
    q, k, v = packed.unflatten(1, (-1, head_dim)).split([heads, kv_heads, kv_heads], 1)
    dout = normal(tokens, heads, head_dim, **options, seed=2 * seed + 1)
    bounds = [*range(0, tokens, size["document"]), tokens]
    return SimpleNamespace(packed=packed, q=q, k=k, v=v, dout=dout, bounds=bounds)


def attention_flops(size: dict, backward: bool) -> float:
    """2 s^2 heads head_dim a document of s tokens: half of the full square's 4; 2.5 times that backward."""
    whole, rest = divmod(size["tokens"], size["document"])
    squares = whole * size["document"] ** 2 + rest**2
    return 2 * squares * size["heads"] * size["head_dim"] * (2.5 if backward else 1)


def attention_reference(i: SimpleNamespace, backward: bool) -> tuple[torch.Tensor, ...]:
    """In float64, a document and a query head at a time; gradients are kept in float64, probabilities nowhere."""
    group, dtype = i.q.shape[1] // i.k.shape[1], torch.float64
    out, dq = torch.empty_like(i.dout, dtype=dtype), torch.empty_like(i.dout, dtype=dtype)
    dk, dv = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (i.k, i.v))
    scale = i.q.shape[2] ** -0.5
    for begin, end in itertools.pairwise(i.bounds):
        hidden = torch.ones(end - begin, end - begin, dtype=torch.bool, device=i.q.device).triu_(1)
        for head in range(i.q.shape[1]):
            kv = head // group
            q, dout = i.q[begin:end, head].double(), i.dout[begin:end, head].double()
            k, v = i.k[begin:end, kv].double(), i.v[begin:end, kv].double()
            p = (q @ k.t() * scale).masked_fill_(hidden, -torch.inf).softmax(-1)
            out[begin:end, head] = p @ v
            if backward:
                dv[begin:end, kv] += p.t() @ dout
                delta = (dout * out[begin:end, head]).sum(1, keepdim=True)
                ds = p * (dout @ v.t() - delta) * scale
                dq[begin:end, head] = ds @ k
                dk[begin:end, kv] += ds.t() @ q
    return (dq, dk, dv) if backward else (out,)


def ours_attention(i: SimpleNamespace) -> Work:
    documents = Documents.build(i.bounds, i.q.device)
    return Work(lambda: attention.attention_forward(i.q, i.k, i.v, documents)[:1])


def ours_attention_backward(i: SimpleNamespace) -> Work:
    documents = Documents.build(i.bounds, i.q.device)
    out, lse = attention.attention_forward(i.q, i.k, i.v, documents)
    gradients = torch.full_like(i.packed, torch.nan).unflatten(1, (-1, i.q.shape[2]))
    dq, dk, dv = gradients.split([i.q.shape[1], i.k.shape[1], i.k.shape[1]], 1)

    def run():
        attention_backward.attention_backward(i.dout, i.q, i.k, i.v, out, lse, documents, dq, dk, dv)
        return dq, dk, dv

    return Work(run)


def attention_row(name: str, size: dict, backward: bool, must: tuple[Goal, ...], aim: tuple[Goal, ...]) -> Row:
    def arguments(i):
        return i.q, i.k, i.v, i.bounds

    return Row(
        name=f"attention_{'backward' if backward else 'forward'}-{name}",
        size=size,
        tiny={"tokens": 24, "document": 24 if size["document"] == size["tokens"] else 7, **TINY_HEADS},
        unit="FLOPs",
        amount=lambda size, item: attention_flops(size, backward),
        inputs=attention_inputs,
        reference=lambda i: attention_reference(i, backward),
        candidates={
            OURS: ours_attention_backward if backward else ours_attention,
            **peers.attention_peers(arguments, backward),
        },
        must=must,
        aim=aim,
    )


def attention_rows() -> tuple[Row, ...]:
    def shape(tokens, document, heads, kv_heads, head_dim):
        return {"tokens": tokens, "document": document, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}

    long = {"64_8": shape(8192, 8192, 64, 8, 128), "32_32": shape(8192, 8192, 32, 32, 128)}
    beside_varlen = {
        "documents": shape(65536, 350, 32, 8, 128),
        "d64": shape(8192, 8192, 32, 8, 64),
        "documents_d64": shape(65536, 350, 32, 8, 64),
    }
    forward = (Goal("sdpa-flash", 1.2, "1.2x SDPA-flash"),), (Goal("TFLOP/s", 500, "500 TFLOP/s"),)
    backward = (
        (Goal("TFLOP/s", 250, "250 TFLOP/s"), Goal("sdpa-flash-deterministic", 1.3, "1.3x deterministic SDPA-flash")),
        (Goal("TFLOP/s", 360, "360 TFLOP/s"),),
    )
    varlen = (Goal("varlen", 1.0, "torch varlen's speed"),), (Goal("varlen", 1.3, "1.3x torch varlen"),)
    rows = []
    for is_backward, goals in ((False, forward), (True, backward)):
        rows += [attention_row(name, size, is_backward, *goals) for name, size in long.items()]
        rows += [attention_row(name, size, is_backward, *varlen) for name, size in beside_varlen.items()]
    return tuple(rows)


# ---- decode attention ------------------------------------------------------------------------------------------------

PAGE = 64


def decode_inputs(size: dict, device: torch.device, dtype: torch.dtype, seed: int) -> SimpleNamespace:
    """A cache of pages in random order, every sequence full but for its last few keys."""
    batch, keys, heads, kv_heads, head_dim = (size[k] for k in ("batch", "keys", "heads", "kv_heads", "head_dim"))
    options = {"device": device, "dtype": dtype}
    pages = batch * keys // PAGE
    k_pages, v_pages = (normal(pages, PAGE, kv_heads, head_dim, **options, seed=3 * seed + n) for n in range(2))
    generator = torch.Generator(device).manual_seed(seed)
    table = torch.randperm(pages, generator=generator, device=device).int().view(batch, -1)
    q = normal(batch, heads, head_dim, **options, seed=3 * seed + 2)
    lengths = torch.full((batch,), keys - 5, dtype=torch.int32, device=device)
    return SimpleNamespace(q=q, k_pages=k_pages, v_pages=v_pages, table=table, lengths=lengths)


def gathered(i: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    """The cache without pages: keys and values [batch, kv_heads, length, head_dim], all of one length."""
    length = int(i.lengths[0])
    caches = (cache[i.table.long()].flatten(1, 2)[:, :length] for cache in (i.k_pages, i.v_pages))
    k, v = (cache.transpose(1, 2).contiguous() for cache in caches)
    return k, v


def plain_decode(q, k, v):
    """q [batch, heads, head_dim] over keys that are already contiguous."""
    grouped = q.unflatten(1, (k.shape[1], -1))
    weights = peers.wide(grouped @ k.transpose(2, 3) * q.shape[2] ** -0.5).softmax(-1).to(q.dtype)
    return ((weights @ v).flatten(1, 2),)


def decode_row() -> Row:
    def ours(i):
        return Work(lambda: decode.decode_forward(i.q, i.k_pages, i.v_pages, i.table, i.lengths)[:1])

    def sdpa(i):
        k, v = gathered(i)

        def run():
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return (F.scaled_dot_product_attention(i.q[:, :, None], k, v, enable_gqa=True)[:, :, 0],)

        return Work(run)

    def arguments(i):
        return i.q, *gathered(i)

    return Row(
        name="decode-4k",
        size={"batch": 64, "keys": 4096, "heads": 64, "kv_heads": 8, "head_dim": 128},
        tiny={"batch": 2, "keys": 2 * PAGE, **TINY_HEADS},
        unit="bytes",
        amount=lambda size, item: 2 * item * size["batch"] * size["keys"] * size["kv_heads"] * size["head_dim"],
        inputs=decode_inputs,
        reference=lambda i: plain_decode(*(x.double() for x in arguments(i))),
        candidates={
            OURS: ours,
            **with_compile(plain_decode, lambda f: peers.forward_of(f, arguments)),
            "sdpa-flash, no pages": sdpa,
        },
        must=(of_copy(0.85),),
        aim=(of_copy(0.92),),
    )


def prefill_inputs(size: dict, device: torch.device, dtype: torch.dtype, seed: int) -> SimpleNamespace:
    """`decode_inputs` with `new` queries a sequence, whose keys are the last ones in the cache."""
    i = decode_inputs(size, device, dtype, seed)
    shape = size["batch"] * size["new"], size["heads"], size["head_dim"]
    i.q, i.new = normal(*shape, device=device, dtype=dtype, seed=3 * seed + 2), size["new"]
    return i


def plain_prefill(q, k, v):
    """q [batch, new, heads, head_dim] over contiguous keys and values [batch, kv_heads, length, head_dim]; the last of
    the queries meets the last key."""
    new, length = q.shape[1], k.shape[2]
    grouped = q.transpose(1, 2).unflatten(1, (k.shape[1], -1))
    score = peers.wide(grouped @ k[:, :, None].transpose(3, 4) * q.shape[3] ** -0.5)
    hidden = torch.ones(new, length, dtype=torch.bool, device=q.device).triu_(length - new + 1)
    weights = score.masked_fill(hidden, -torch.inf).softmax(-1).to(q.dtype)
    return ((weights @ v[:, :, None]).flatten(1, 2).transpose(1, 2).flatten(0, 1),)


def prefill_flops(size: dict) -> float:
    """4 heads head_dim for each query and key it reads: all old ones, and half of the square of the new ones."""
    old = size["keys"] - size["new"]
    return 4 * size["batch"] * size["heads"] * size["head_dim"] * (size["new"] * old + size["new"] ** 2 / 2)


def prefill_row() -> Row:
    def ours(i):
        batch = i.table.shape[0]
        documents = Documents.build(range(0, batch * i.new + 1, i.new), i.q.device)
        arguments = i.q, i.k_pages, i.v_pages, i.table, i.lengths, documents
        return Work(lambda: (paged_prefill.paged_prefill_forward(*arguments),))

    def arguments(i):
        return i.q.unflatten(0, (-1, i.new)), *gathered(i)

    def sdpa(i):
        q, k, v = arguments(i)
        q, lower_right = q.transpose(1, 2), causal_lower_right(i.new, k.shape[2])

        def run():
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=lower_right, enable_gqa=True)
            return (out.transpose(1, 2).flatten(0, 1),)

        return Work(run)

    return Row(
        name="paged_prefill",
        size={"batch": 4, "keys": 4096, "new": 1024, "heads": 32, "kv_heads": 8, "head_dim": 128},
        tiny={"batch": 2, "keys": 2 * PAGE, "new": 9, **TINY_HEADS},
        unit="FLOPs",
        amount=lambda size, item: prefill_flops(size),
        inputs=prefill_inputs,
        reference=lambda i: plain_prefill(*(x.double() for x in arguments(i))),
        candidates={
            OURS: ours,
            **with_compile(plain_prefill, lambda f: peers.forward_of(f, arguments)),
            "sdpa-flash, no pages": sdpa,
        },
        must=(Goal("sdpa-flash, no pages", 1.0, "SDPA-flash's speed on keys without pages"),),
        aim=(Goal("sdpa-flash, no pages", 1.2, "1.2x SDPA-flash on keys without pages"),),
    )


# ---- linear + cross-entropy ------------------------------------------------------------------------------------------


def linear_inputs(size: dict, device: torch.device, dtype: torch.dtype, seed: int) -> SimpleNamespace:
    tokens, width, vocabulary = size["tokens"], size["width"], size["vocabulary"]
    options = {"device": device, "dtype": dtype}
    hidden = normal(tokens, width, **options, seed=2 * seed)
    weight = normal(vocabulary, width, **options, seed=2 * seed + 1) * width**-0.5
    generator = torch.Generator(device).manual_seed(seed)
    targets = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
    return SimpleNamespace(hidden=hidden, weight=weight, targets=targets)


def linear_reference(i: SimpleNamespace) -> tuple[torch.Tensor, ...]:
    """In float64, 1,024 rows of logits at a time."""
    weight = i.weight.double()
    loss, dhidden = torch.zeros((), dtype=torch.float64, device=weight.device), []
    dweight = torch.zeros_like(weight)
    for hidden, targets in zip(i.hidden.split(1024), i.targets.split(1024), strict=True):
        wide = hidden.double()
        part, dlogits = row_by_row(SimpleNamespace(logits=wide @ weight.t(), targets=targets))
        loss += part
        dhidden.append(dlogits.double() @ weight)
        dweight.addmm_(dlogits.double().t(), wide)
    return loss, torch.cat(dhidden), dweight


def cublas_products(i: SimpleNamespace) -> Work:
    """The three products of forward and backward pass, each whole, in the inputs' dtype."""
    dlogits = normal(len(i.hidden), len(i.weight), device=i.hidden.device, dtype=i.hidden.dtype, seed=5)
    logits = torch.empty_like(dlogits)

    def run():
        torch.mm(i.hidden, i.weight.t(), out=logits)
        return torch.mm(dlogits, i.weight), torch.mm(dlogits.t(), i.hidden)

    return Work(run)


def linear_row(vocabulary: int, name: str) -> Row:
    def ours(i):
        acc = torch.float64 if i.hidden.dtype == torch.float64 else torch.float32
        dweight = torch.zeros(i.weight.shape, dtype=acc, device=i.weight.device)

        def run():
            options = {"weight_grad": dweight, "need_gradient": True}
            function = linear_cross_entropy.linear_cross_entropy_forward
            return (*function(i.hidden, i.weight, i.targets, **options), dweight)

        return Work(run, dweight.zero_)

    plain = with_compile(
        peers.linear_cross_entropy, lambda f: peers.both_of(f, lambda i: (i.hidden, i.weight, i.targets), 2)
    )
    return Row(
        name=f"linear_cross_entropy-{name}",
        size={"tokens": 8192, "width": 4096, "vocabulary": vocabulary},
        tiny={"tokens": 6, "width": 24, "vocabulary": 50},
        unit="FLOPs",
        amount=lambda size, item: 6 * size["tokens"] * size["width"] * size["vocabulary"],
        inputs=linear_inputs,
        reference=linear_reference,
        candidates={OURS: ours, **plain, "liger": peers.liger_linear_cross_entropy},
        must=(Goal("cublas", 0.85, "85% of cuBLAS"), Goal("workspace", 1e9, "< 1 GB of workspace")),
        aim=(Goal("cublas", 0.92, "92% of cuBLAS"),),
        products=cublas_products,
        workspace=lambda i: i.hidden.nbytes,
    )


MATRIX_ROWS = (linear_row(32000, "32k"), linear_row(128256, "128k"), *attention_rows(), decode_row(), prefill_row())
