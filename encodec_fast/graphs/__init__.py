"""The plan as graphs of other runtimes: ONNX, written node by node. Nothing is traced.

`builder` collects nodes, `stages` writes those of a stage, `codec` those of encoder and decoder, `export` the files.
"""
