"""The plan as graphs of other runtimes: ONNX, written node by node, and modules that torch itself exports.

`builder` collects nodes, `stages` writes those of a stage, `codec` those of encoder and decoder, `export` the files. Nothing is traced.
`torch_modules` has what `torch.export` takes.
"""
