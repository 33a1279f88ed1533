"""Random configurations, for hypothesis."""

import torch
from hypothesis import strategies as st
from transformers import EncodecConfig


@st.composite
def configs(draw: st.DrawFn, streamable: bool = False) -> EncodecConfig:
    """Small models over every field of EncodecConfig; streamable: of those that can stream."""
    causal = streamable or draw(st.booleans())
    compress = draw(st.sampled_from([1, 2, 4]))
    ratios = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    codebook_bits = draw(st.integers(1, 5))
    sampling_rate = draw(st.integers(200, 4000))
    frame_rate = -(-sampling_rate // int(torch.tensor(ratios).prod()))
    levels = sorted(draw(st.sets(st.integers(1, 5), min_size=1, max_size=3)))
    chunked = not streamable and draw(st.booleans())
    return EncodecConfig(
        sampling_rate=sampling_rate,
        audio_channels=draw(st.integers(1, 2)),
        normalize=not streamable and draw(st.booleans()),
        chunk_length_s=draw(st.floats(0.02, 0.3)) if chunked else None,
        overlap=draw(st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.6])) if chunked else None,
        hidden_size=draw(st.integers(1, 12)),
        num_filters=draw(st.integers(compress, 9)),
        num_residual_layers=draw(st.integers(0, 3)),
        upsampling_ratios=ratios,
        norm_type="weight_norm" if streamable else draw(st.sampled_from(["weight_norm", "time_group_norm"])),
        kernel_size=draw(st.integers(1, 9)),
        last_kernel_size=draw(st.integers(1, 9)),
        residual_kernel_size=draw(st.integers(1, 5)),
        dilation_growth_rate=draw(st.integers(1, 3)),
        use_causal_conv=causal,
        pad_mode=draw(st.sampled_from(["reflect", "constant", "replicate"])),
        compress=compress,
        num_lstm_layers=draw(st.integers(1, 3)),
        trim_right_ratio=draw(st.sampled_from([1.0, 0.9, 0.5, 0.3, 0.0])) if causal else 1.0,
        codebook_size=2**codebook_bits,
        use_conv_shortcut=draw(st.booleans()),
        # just above the bandwidth of that many levels, so that rounding can't lose one
        # 10 bits at the top: transformers before 4.45 counts that many per level, whatever the codebook
        target_bandwidths=[bits * frame_rate * 1.0001 / 1000 for bits in sorted({*(level * codebook_bits for level in levels), 10})],
    )
