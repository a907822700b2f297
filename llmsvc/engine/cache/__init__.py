"""What a model keeps of the tokens it has read: one file for each kind of layer.

Each is a transformers ``Cache`` layer, so the library's models write and read it unmodified.
"""
