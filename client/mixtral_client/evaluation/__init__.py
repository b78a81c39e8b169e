"""Quality of a served model, measured over gRPC: perplexity on texts and accuracy on multiple choice.

Definitions, file formats and names of figures are those of `mixtral-build evaluate`, which reads the weights itself;
this package knows Triton's protocol alone. A test holds the two together.
"""
