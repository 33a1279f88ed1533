"""The Transformer over codes that makes entropy coding gain: the module in plain torch, and its weights from files."""
