"""How contenders and suites are called and drawn in the documentation."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """heading: of a table's column.  label: in a picture's legend, with a colour and a marker of matplotlib's."""

    heading: str
    label: str
    colour: str
    marker: str


# In the order of tables. Greys for the others, one hue for ours: told apart in print and by colour-blind readers by their lightness.
LEGEND = {
    "hf": Entry("transformers", "transformers", "#444444", "o"),
    "folded": Entry("weight norm removed", "transformers, no weight norm", "#6e6e6e", "x"),
    "compile": Entry("torch.compile", "transformers, torch.compile", "#8f8f8f", "+"),
    "encodec": Entry("facebookresearch encodec", "facebookresearch encodec", "#b0b0b0", "s"),
    "onnxruntime": Entry("onnxruntime", "onnxruntime", "#e2b04a", "<"),
    "browser": Entry("Chromium, WebAssembly", "Chromium, WebAssembly", "#f0d080", ">"),
    "openvino": Entry("OpenVINO", "OpenVINO", "#d98c3f", "^"),
    "ours-torch": Entry("ours, torch", "encodec_fast, torch", "#7db7e8", "v"),
    "ours-cpu": Entry("ours, cpu", "encodec_fast, cpu", "#0b5fa5", "D"),
    "ours-triton": Entry("ours, triton", "encodec_fast, triton", "#08335c", "P"),
}
# Of what is no contender, such as a precision that nobody ships
OTHER_COLOURS = ("#c0392b", "#8e44ad", "#1e8449", "#b7950b", "#d81b8c", "#117a65")
