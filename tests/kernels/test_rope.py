import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import rope
from kernels.rope import rope_backward, rope_forward


def tables(backend, head_dim, positions=64):
    dtype = torch.float64 if backend.dtype == torch.float64 else torch.float32
    frequencies = 10000.0 ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies)
    return angle.cos().to(backend.device, dtype), angle.sin().to(backend.device, dtype)


def plain(qkv, cos, sin, positions, heads, kv_heads):
    """Rotation as in Hugging Face's Llama: x cos + rotate_half(x) sin, in x's dtype."""
    x = qkv.unflatten(1, (heads + 2 * kv_heads, -1)).clone()
    full_cos, full_sin = (torch.cat((t, t), -1)[positions][:, None].to(x.dtype) for t in (cos, sin))
    rotated = x[:, : heads + kv_heads]
    first, second = rotated.chunk(2, -1)
    x[:, : heads + kv_heads] = rotated * full_cos + torch.cat((-second, first), -1) * full_sin
    return x.flatten(1)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 8), (3, 1, 24), (8, 2, 64)])
def test_forward_and_backward(backend, assert_accurate, heads, kv_heads, head_dim):
    backend.use(rope)
    cos, sin = tables(backend, head_dim)
    positions = torch.tensor([0, 1, 2, 0, 63, 5], dtype=torch.int32, device=backend.device)
    qkv = backend.tensor(6, (heads + 2 * kv_heads) * head_dim)
    result = rope_forward(qkv.clone(), cos, sin, positions, heads, kv_heads)
    exact = plain(qkv.double(), cos.double(), sin.double(), positions, heads, kv_heads)
    assert_accurate(result, plain(qkv, cos, sin, positions, heads, kv_heads), exact, 2)
    back = rope_backward(qkv.clone(), cos, sin, positions, heads, kv_heads)
    exact = plain(qkv.double(), cos.double(), -sin.double(), positions, heads, kv_heads)
    assert_accurate(back, plain(qkv, cos, -sin, positions, heads, kv_heads), exact, 3)
    v = slice((heads + kv_heads) * head_dim, None)
    assert torch.equal(result[:, v], qkv[:, v])


def test_in_place_on_rows_with_gaps(backend):
    backend.use(rope)
    cos, sin = tables(backend, 16)
    positions = torch.arange(5, device=backend.device)  # int64 is accepted too
    wide = backend.tensor(5, 96)
    expected = rope_forward(wide[:, :64].clone(), cos, sin, positions, 2, 1)
    result = rope_forward(wide[:, :64], cos, sin, positions, 2, 1)
    assert result.data_ptr() == wide.data_ptr()
    assert torch.equal(wide[:, :64], expected)
    assert torch.equal(wide[:, 64:], backend.tensor(5, 96)[:, 64:])


def test_scores_depend_on_the_distance_only(backend):
    """What rotary embedding is for: the product of a rotated q and k stays when both move by the same distance."""
    backend.use(rope)
    cos, sin = tables(backend, 16)
    qkv = backend.tensor(1, 48).expand(2, 48).contiguous()
    scores = []
    for q_position, k_position in ((7, 3), (47, 43)):
        positions = torch.tensor([q_position, k_position], device=backend.device)
        rotated = rope_forward(qkv.clone(), cos, sin, positions, 1, 1).double()
        scores.append((rotated[0, :16] @ rotated[1, 16:32]).item())
    assert scores[0] == pytest.approx(scores[1], abs=40 * torch.finfo(backend.dtype).eps)


def test_positions_need_not_be_contiguous():
    positions = torch.arange(12, dtype=torch.int32)[::2]
    cos, sin = torch.rand(12, 4), torch.rand(12, 4)
    qkv = torch.randn(6, 24)
    assert torch.equal(
        rope.rope(qkv, cos, sin, positions, 1, 1), rope.rope(qkv, cos, sin, positions.contiguous(), 1, 1)
    )


def test_positions_beyond_the_table_show():
    """IndexError in the twin; NaN in the kernel, which cannot raise."""
    table, positions = torch.rand(40, 4), torch.tensor([3, 34], dtype=torch.int32)
    with pytest.raises(IndexError):
        rope.rope(torch.randn(2, 24), table[:32], table[:32], positions, 1, 1)
    if not torch.cuda.is_available():
        turned = rope._triton_rotate(torch.randn(2, 24), table[:32], table[:32], positions, 1, 1, False)
        assert turned[0].isfinite().all()
        assert turned[1, :16].isnan().all()


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(0, 20),
    heads=st.integers(1, 19),
    kv_heads=st.integers(1, 5),
    half=st.sampled_from([1, 4, 12, 48, 64]),
    gap=st.sampled_from([0, 5, 16]),
)
def test_any_shape(backend, assert_accurate, tokens, heads, kv_heads, half, gap):
    """Any number of heads and tokens, also those that do not fill the tiles; what lies between rows stays."""
    backend.use(rope)
    cos, sin = tables(backend, 2 * half)
    positions = torch.arange(tokens, device=backend.device) * 7 % 64
    width = (heads + 2 * kv_heads) * 2 * half
    qkv = backend.tensor(tokens, width + gap)
    result = qkv.clone()
    rope_forward(result[:, :width], cos, sin, positions, heads, kv_heads)
    exact = plain(qkv[:, :width].double(), cos.double(), sin.double(), positions, heads, kv_heads)
    assert_accurate(result[:, :width], plain(qkv[:, :width], cos, sin, positions, heads, kv_heads), exact, 2)
    assert torch.equal(result[:, width:], qkv[:, width:])


def test_same_in_any_order(backend):
    backend.use(rope)
    cos, sin = tables(backend, 64)
    positions, qkv = torch.arange(37, device=backend.device), backend.tensor(37, 9 * 64)
    backend.assert_same_in_any_order(lambda: rope_forward(qkv.clone(), cos, sin, positions, 5, 2))
